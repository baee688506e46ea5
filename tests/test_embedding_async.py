"""Embedders that must be awaited: from threads, from event loops, and from each other."""

import asyncio
import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dspy
import numpy as np
import pytest

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner
from dspy_qvl.embedding.models.lexical import LexicalModel
from tests.conftest import rated

TEXTS = [text for text, _ in rated(30)]
MODEL = LexicalModel(64)


async def embed(texts, sign=1.0):
    await asyncio.sleep(0.001)
    return sign * MODEL(texts)


class Client:
    """As clients are that keep a connection: it can be used on one event loop only."""

    name = "client"

    def __init__(self):
        self.loops = set()

    async def __call__(self, texts):
        await asyncio.sleep(0.001)
        self.loops.add(asyncio.get_running_loop())
        return MODEL(texts).tolist()

    async def embed(self, texts):
        return await self(texts)


def named(function):
    def call(texts, **arguments):
        return function(texts, **arguments)

    call.name = "returns an awaitable"
    return call


KINDS = {
    "async def": lambda: embed,
    "async __call__": Client,
    "bound async method": lambda: Client().embed,
    "partial": lambda: functools.partial(embed, sign=1.0),
    "returns an awaitable": lambda: named(embed),
    "dspy.Embedder of async def": lambda: dspy.Embedder(embed, sign=1.0),
    "dspy.Embedder of async __call__": lambda: dspy.Embedder(Client()),
    "dspy.Embedder of one that returns an awaitable": lambda: dspy.Embedder(named(embed)),
}


def make(embedder, **settings):
    return Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=None, features=None, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedder_that_must_be_awaited_is(kind):
    expected = MODEL(TEXTS)
    np.testing.assert_allclose(make(KINDS[kind]()).embed(TEXTS), expected, atol=1e-6)

    async def main():
        awaited = await make(KINDS[kind](), batch_size=7).aembed(TEXTS)
        plain = make(KINDS[kind]()).embed(TEXTS)  # inside a running loop
        return awaited, plain

    for got in asyncio.run(main()):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_an_asynchronous_embedder_is_learned_from_and_awaited_by_many():
    learner = make(Client())
    learner.add_training_examples(rated(30))
    learner.train()

    async def main():
        return await asyncio.gather(*(learner.acall(text=f"a cup {number}") for number in range(20)))

    scores = [prediction.score for prediction in asyncio.run(main())]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(learner.predict, [f"a cup {number}" for number in range(20)])) == scores


def test_it_is_always_awaited_on_the_same_loop():
    client = Client()
    learner = make(client, max_concurrency=4)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: learner.embed([f"text {number}"]), range(40)))
    for number in range(3):
        asyncio.run(learner.aembed([f"awaited {number}"]))
    assert len(client.loops) == 1


def test_the_callers_loop_stays_free_meanwhile():
    async def slow(texts):
        time.sleep(0.2)  # blocks, as it should not
        return MODEL(texts)

    ticks = []

    async def main():
        async def tick():
            while True:
                ticks.append(time.perf_counter())
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        await make(slow).aembed(TEXTS)
        ticking.cancel()

    asyncio.run(main())
    assert len(ticks) > 10


@pytest.mark.parametrize("inner", ["plain", "async", "itself"])
def test_an_asynchronous_embedder_may_ask_another_learner_or_itself(inner):
    other = make(embed if inner == "async" else MODEL)
    learners = {}

    async def asks(texts):
        if inner == "itself" and "inner" not in texts:
            learners["self"].embed(["inner"])
        return other.embed(texts)

    learners["self"] = make(asks)
    done = []
    worker = threading.Thread(target=lambda: done.append(learners["self"].embed(TEXTS)), daemon=True)
    worker.start()
    worker.join(30)
    np.testing.assert_allclose(done[0], MODEL(TEXTS), atol=1e-6)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_it_raises_arrives_as_an_error_of_ours(asynchronous):
    async def failing(texts):
        raise ConnectionError("line dropped")

    def gives_nonsense(texts):
        async def wrong():
            return [[1.0, 2.0]]

        return wrong()

    for embedder, message in (
        (failing, "failed: ConnectionError: line dropped"),
        (gives_nonsense, "gave 1 vectors for"),
    ):
        learner = make(embedder)
        with pytest.raises(EmbeddingError, match=message):
            asyncio.run(learner.aembed(TEXTS)) if asynchronous else learner.embed(TEXTS)


def test_a_block_of_features_that_must_be_awaited_is():
    async def characters(texts):
        await asyncio.sleep(0.001)
        return [[len(text)] for text in texts]

    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=[characters])
    learner.add_training_examples([("a" * n, float(n)) for n in range(1, 20)])
    learner.train()
    assert learner.predict("b" * 15) > learner.predict("b" * 5)


def test_a_coroutine_is_never_left_unawaited(recwarn):
    make(embed).embed(TEXTS)
    make(dspy.Embedder(embed)).embed(TEXTS)
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]
