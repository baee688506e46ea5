"""Many callers, few batches: what is asked together, what each caller gets, and that nobody waits forever."""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner
from dspy_qvl.embedding.batching import Coalescer
from dspy_qvl.embedding.embedding import Embedding
from dspy_qvl.embedding.models.lexical import LexicalModel
from dspy_qvl.embedding.models.spec import ModelSpec
from tests.conftest import rated
from tests.interrupts import interrupted, may_be_swallowed, needs_a_timer, seconds_of

DEADLINE = 30.0


class SlowModel:
    """An embedder that takes its time for a batch, whatever is in it, and refuses texts with "poison" in them."""

    def __init__(self, seconds: float = 0.02, name: str = "slow") -> None:
        self.name = name
        self.seconds = seconds
        self.batches: list[list[str]] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._model = LexicalModel(32)

    def __call__(self, texts: list[str]) -> np.ndarray:
        with self._lock:
            self.batches.append(list(texts))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.seconds)
            if any("poison" in text for text in texts):
                raise RuntimeError("poison")
            return self._model(texts)
        finally:
            with self._lock:
                self.at_once -= 1

    def __deepcopy__(self, memo: dict) -> "SlowModel":
        return self

    def __reduce__(self):
        return type(self), (self.seconds, self.name)

    @property
    def asked(self) -> Counter:
        return Counter(text for batch in self.batches for text in batch)


def make(model, tmp_path, **settings):
    return Embedding(ModelSpec("", embedder=model), cache_dir=tmp_path / "cache", **settings)


def in_threads(n, call):
    """What `call(number)` gave or raised in each of n threads that begin together; none may hang."""
    begin = threading.Barrier(n)
    outcomes = [None] * n

    def work(number):
        begin.wait()
        try:
            outcomes[number] = call(number)
        except BaseException as error:
            outcomes[number] = error

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "a caller waits forever"
    return outcomes


def test_a_lone_caller_asks_at_once_and_alone(tmp_path):
    model = SlowModel(0)
    embedding = make(model, tmp_path)
    for text in "abc":
        embedding.encoder().vector(text)
    assert model.batches == [["a"], ["b"], ["c"]]


def test_texts_that_come_while_a_batch_is_in_flight_go_together(tmp_path):
    model = SlowModel()
    embedding = make(model, tmp_path)

    def ten(thread):
        return [embedding.encoder().vector(f"text {thread} {number}") for number in range(10)]

    in_threads(16, ten)
    assert sum(model.asked.values()) == 160
    assert len(model.batches) <= 160 / 6
    assert model.most_at_once == 1


def test_every_caller_gets_the_vectors_of_its_own_texts(tmp_path):
    embedding, alone = make(SlowModel(0.001), tmp_path, batch_size=7), LexicalModel(32)

    def some(thread):
        texts = [f"{thread} {number} {'long ' * (number % 5)}" for number in range(1 + thread % 11)]
        return texts, embedding(texts)

    for texts, vectors in in_threads(24, some):
        np.testing.assert_allclose(vectors, alone(texts), atol=1e-6)


def test_the_same_new_text_of_16_threads_is_embedded_once(tmp_path):
    model = SlowModel()
    embedding = make(model, tmp_path)
    vectors = in_threads(16, lambda thread: embedding.encoder().vector("the same new text").tobytes())
    assert model.asked == {"the same new text": 1}
    assert len(set(vectors)) == 1


def test_two_processes_embed_a_text_at_most_twice_and_both_use_the_first(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [context.Process(target=_embed_noisily, args=(tmp_path, seed, answers)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    first, second = (answers.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert first == second


def _embed_noisily(tmp_path, seed, answers):
    """A model whose vectors differ a little from process to process, as those of servers do."""

    def noisy(texts):
        time.sleep(0.3)
        return LexicalModel(32)(texts) + np.random.default_rng(seed).normal(size=(len(texts), 32)) * 1e-3

    noisy.name = "noisy"
    embedding = make(noisy, tmp_path)
    answers.put(embedding(["one", "two", "three"]).tobytes())


def test_a_failure_reaches_everyone_who_waits_for_that_text_and_no_one_else(tmp_path):
    model = SlowModel()
    embedding = make(model, tmp_path)

    def one(thread):
        return embedding.encoder().vector("poison" if thread % 4 == 0 else f"fine {thread}")

    outcomes = in_threads(16, one)
    for thread, outcome in enumerate(outcomes):
        if thread % 4 == 0:
            with pytest.raises(EmbeddingError, match="the embedder 'slow' failed: RuntimeError: poison"):
                raise outcome
        else:
            assert isinstance(outcome, np.ndarray)
    assert len({id(outcome) for outcome in outcomes[::4]}) == 4  # each its own: tracebacks are not shared


def test_the_next_call_after_a_failure_asks_again(tmp_path):
    model = SlowModel(0)
    embedding = make(model, tmp_path)
    for _ in range(2):
        with pytest.raises(EmbeddingError, match="poison"):
            embedding.encoder().vector("poison")
    assert model.asked["poison"] == 2
    embedding.encoder().vector("fine")


def test_a_caller_with_many_batches_does_not_keep_others_waiting(tmp_path):
    model = SlowModel(0.01)
    embedding = make(model, tmp_path, batch_size=4)
    done_at = {}

    def call(thread):
        if thread == 0:
            embedding([f"bulk {number}" for number in range(200)])  # 50 batches
        else:
            time.sleep(0.05)
            embedding.encoder().vector("quick")
        done_at[thread] = time.perf_counter()

    in_threads(2, call)
    asked = [batch[0].split()[0] for batch in model.batches]
    assert asked.index("quick") < 12
    assert done_at[1] < done_at[0]


def test_a_batch_keeps_to_its_budget_of_padded_tokens():
    coalescer = Coalescer(1, batch_size=8, budget=100)
    batches = []

    def run(batch):
        batches.append([wanted.cost for wanted in batch])
        return {wanted.key: wanted.text for wanted in batch}

    costs = [5, 90, 30, 31, 7, 250, 8, 33, 9, 6, 5, 5, 5, 5, 5]
    texts = [(bytes([row]), str(row), cost) for row, cost in enumerate(costs)]
    assert coalescer(texts, lambda key: None, run) == {key: text for key, text, _ in texts}
    assert sum(map(len, batches)) == len(costs)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(batch) <= 100
        assert len(batch) <= 8
    assert len(batches) == 5


def test_a_model_that_asks_for_vectors_itself_does_not_wait_for_its_own_slot(tmp_path):
    def nested(texts):
        inner = embedding(["inner a", "inner b"]) if "inner a" not in texts else np.zeros((2, 32))
        return LexicalModel(32)(texts) + inner.sum()

    nested.name = "nested"
    embedding = make(nested, tmp_path)
    outcomes = in_threads(8, lambda thread: embedding.encoder().vector(f"outer {thread}"))
    assert all(isinstance(outcome, np.ndarray) for outcome in outcomes)


def test_an_interrupted_caller_leaves_the_texts_of_others_to_them(tmp_path):
    class Interrupted(SlowModel):
        def __call__(self, texts):
            if len(self.batches) == 1:  # the second batch: the leader's own thread is interrupted in it
                self.batches.append(list(texts))
                raise KeyboardInterrupt
            return super().__call__(texts)

    model = Interrupted(0.1)
    embedding = make(model, tmp_path)
    outcomes = in_threads(12, lambda thread: embedding.encoder().vector(f"text {thread % 6}"))
    assert sum(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, np.ndarray) for outcome in outcomes) == 11


def test_64_threads_with_failures_and_interrupts_come_to_an_end(tmp_path):
    rng = random.Random(7)

    class Moody(SlowModel):
        def __call__(self, texts):
            mood = rng.random()
            if mood < 0.05:
                raise KeyboardInterrupt
            if mood < 0.15:
                raise ConnectionError("moody")
            return super().__call__(texts)

    embedding = make(Moody(0.001), tmp_path, batch_size=5)
    alone = LexicalModel(32)

    def call(thread):
        mine, n_right = random.Random(thread), 0
        for _ in range(30):
            texts = [f"text {mine.randrange(900)}" for _ in range(mine.choice([1, 1, 1, 3, 12]))]
            with contextlib.suppress(EmbeddingError, KeyboardInterrupt):
                np.testing.assert_allclose(embedding(texts), alone(texts), atol=1e-6)
                n_right += 1
        return n_right

    n_right = in_threads(64, call)
    assert sum(n_right) > 64 * 30 / 2
    coalescer = embedding._first._coalescer
    assert (coalescer._free, len(coalescer._queue), len(coalescer._wanted)) == (1, 0, 0)


@needs_a_timer
@may_be_swallowed
def test_an_interrupt_at_any_moment_costs_no_slot_and_lets_nobody_wait(tmp_path):
    rng, seconds = random.Random(0), float(os.environ.get("SECONDS_OF_INTERRUPTS", "0.7"))
    embedding = make(SlowModel(0.0), tmp_path, batch_size=4)
    numbers = itertools.count()
    stop, n_embedded = threading.Event(), Counter()

    def embed(who: str) -> None:
        # Some texts are wanted by several at once.
        embedding([f"{who} {next(numbers)}", f"text {next(numbers) // 3}"])
        n_embedded[who] += 1

    def others(who: str) -> None:
        while not stop.is_set():
            embed(who)

    threads = [threading.Thread(target=others, args=(f"thread {n}",), daemon=True) for n in range(3)]
    for thread in threads:
        thread.start()
    longest = 2 * seconds_of(lambda: embed("main"))
    n_struck, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        n_struck += interrupted(lambda: embed("main"), rng, longest)
    stop.set()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    embed("at last")
    coalescer = embedding._first._coalescer
    assert (coalescer._free, len(coalescer._queue), len(coalescer._wanted)) == (1, 0, 0)
    assert n_struck > 20
    print(n_struck, "interrupts", dict(n_embedded))


# Event loops


def test_async_callers_coalesce_and_the_loop_stays_free(tmp_path):
    model = SlowModel(0.05)
    embedding = make(model, tmp_path)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    async def main():
        ticking = asyncio.create_task(tick())
        vectors = await asyncio.gather(*(embedding.acall([f"text {number}"]) for number in range(40)))
        ticking.cancel()
        return vectors

    vectors = asyncio.run(main())
    assert np.concatenate(vectors).shape == (40, 32)
    assert len(model.batches) <= 4
    assert ticks >= 5


def test_a_cancelled_task_takes_nothing_from_others_and_what_it_asked_for_is_kept(tmp_path):
    model = SlowModel(0.1)
    embedding = make(model, tmp_path)

    async def main():
        first = asyncio.create_task(embedding.acall(["one"]))
        await asyncio.sleep(0.03)  # in flight
        second = [asyncio.create_task(embedding.acall([text])) for text in ("two", "two", "three")]
        await asyncio.sleep(0.03)
        first.cancel()
        second[0].cancel()
        return await asyncio.gather(first, *second, return_exceptions=True)

    outcomes = asyncio.run(main())
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "CancelledError",
        "CancelledError",
        "ndarray",
        "ndarray",
    ]
    embedding.encoder().vector("one")
    assert model.asked == {"one": 1, "two": 1, "three": 1}


def test_threads_do_not_wait_for_a_loop_that_stands_still(tmp_path):
    model = SlowModel(0.05)
    embedding = make(model, tmp_path)

    async def cell():
        asking = [asyncio.create_task(embedding.acall([text])) for text in ("one", "two")]
        await asyncio.sleep(0.02)  # in flight, and waiting for the only slot
        vectors = in_threads(4, lambda thread: embedding.encoder().vector(["one", "two", "three", "four"][thread]))
        return vectors, await asyncio.gather(*asking)  # the loop stood still meanwhile

    vectors, awaited = asyncio.run(cell())
    np.testing.assert_array_equal(vectors[0], awaited[0][0])
    assert model.asked == {"one": 1, "two": 1, "three": 1, "four": 1}


def test_a_loop_that_was_closed_takes_no_text_and_no_slot_with_it(tmp_path):
    model = SlowModel(0.05)
    embedding = make(model, tmp_path)
    for text in ("one", "two", "three"):
        loop = asyncio.new_event_loop()

        async def ask(text=text, loop=loop):
            loop.kept = asyncio.create_task(embedding.acall([text]))
            await asyncio.sleep(0.02)

        loop.run_until_complete(ask())
        loop.kept.get_loop()  # still pending
        loop.close()
    vectors = in_threads(4, lambda thread: embedding.encoder().vector(["one", "two", "three", "four"][thread]))
    assert all(isinstance(vector, np.ndarray) for vector in vectors)
    assert embedding._first._coalescer._free == 1


def test_a_plain_call_inside_a_running_loop_does_not_wait_for_that_loop(tmp_path):
    model = SlowModel(0.1)
    embedding = make(model, tmp_path)

    async def main():
        task = asyncio.create_task(embedding.acall(["one"]))
        await asyncio.sleep(0.03)
        plain = embedding.encoder().vector("one")  # blocks the loop that "one" is awaited on
        return plain, (await task)[0]

    plain, awaited = asyncio.run(main())
    np.testing.assert_array_equal(plain, awaited)
    assert model.asked == {"one": 1}


def test_a_plain_call_does_not_wait_for_a_batch_that_a_cancelled_task_left_on_its_loop(tmp_path):
    model = SlowModel(0.1)
    embedding = make(model, tmp_path)

    async def main():
        task = asyncio.create_task(embedding.acall(["one"]))
        await asyncio.sleep(0.03)
        task.cancel()
        await asyncio.sleep(0)
        return embedding.encoder().vector("one")

    assert asyncio.run(asyncio.wait_for(main(), DEADLINE)).shape == (32,)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_caller_that_may_have_several_batches_in_flight_has_them_up_to_the_limit(tmp_path, kind):
    model = SlowModel(0.05)
    embedding = make(model, tmp_path, batch_size=5)
    embedding._first._coalescer = Coalescer(4, 5)
    object.__setattr__(embedding._first.backend, "width", 4)
    texts = [f"text {number}" for number in range(60)]
    given = embedding(texts) if kind == "sync" else asyncio.run(embedding.acall(texts))
    np.testing.assert_allclose(given, LexicalModel(32)(texts), atol=1e-6)
    assert model.most_at_once == 4


def test_a_learner_is_awaited(tmp_path):
    model = SlowModel(0.02)
    learner = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path, features=None)
    learner.add_training_examples(rated(20))
    learner.train()
    before = len(model.batches)

    async def main():
        return await asyncio.gather(*(learner.acall(text=f"a text {number}") for number in range(30)))

    predictions = asyncio.run(main())
    assert len(model.batches) - before <= 4
    assert [prediction.score for prediction in predictions] == [learner.predict(f"a text {n}") for n in range(30)]


# Processes


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_process_embeds_while_the_parent_does(tmp_path, method):
    embedding = make(SlowModel(0.3), tmp_path)
    threads = [threading.Thread(target=embedding.encoder().vector, args=(f"parent {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)  # one of them holds the only slot, the others wait
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    worker = context.Process(target=_embed_in_worker, args=(embedding, answers))
    worker.start()
    vectors = answers.get(timeout=60)
    worker.join(60)
    for thread in threads:
        thread.join(DEADLINE)
    np.testing.assert_allclose(vectors, LexicalModel(32)(["parent 0", "child"]), atol=1e-6)


def _embed_in_worker(embedding, answers):
    answers.put(embedding(["parent 0", "child"]))


def test_learners_of_one_model_share_what_is_in_flight(tmp_path):
    model = SlowModel(0.05)
    learners = [
        Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path / "cache", features=None) for _ in range(4)
    ]
    texts = [f"text {number}" for number in range(20)]
    vectors = in_threads(12, lambda thread: learners[thread % 4].embed(texts))
    assert model.asked == dict.fromkeys(texts, 1)
    assert all(np.array_equal(one, vectors[0]) for one in vectors)
    assert [len(learner.embedding_cache) for learner in learners] == [20] * 4
    assert [learner.embedding_dim for learner in learners] == [32] * 4
