"""A learner over a hosted model, with a real server on this machine: what the caller sees, what is kept, what is asked.

How single requests are made and repeated is in test_hosted.py.
"""

import asyncio
import logging
import pickle
import threading
import time

import numpy as np
import pytest

from dspy_qvl import (
    EmbeddingError,
    InputError,
    NotFittedError,
    Qwen3EmbeddingValueLearner,
    Reranker,
    StateError,
    TextsRefusedError,
)
from dspy_qvl.embedding.models.hosted.providers import PROVIDERS
from dspy_qvl.embedding.models.spec import DEFAULT_MODEL
from dspy_qvl.embedding.probe import PROBE_TEXTS
from dspy_qvl.state.files import read_file, write_file
from tests.conftest import rated
from tests.loopback import (
    Loopback,
    in_base64,
    other_model,
    other_size,
    poison,
    shuffled,
    status,
    too_many_texts,
    vectors,
)

TEXTS = [text for text, _ in rated(40)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # importing litellm offline would retry a download
    with Loopback() as running:
        yield running


def make(server, tmp_path, **settings):
    settings = {"cache_dir": tmp_path / "cache", **settings}
    return Qwen3EmbeddingValueLearner(
        "openai/small-embedding", api_base=server.v1, api_key="sk-right", features=None, **settings
    )


def asked(server):
    """The texts that were asked for, without the probe that goes along with the first batches."""
    return [text for batch in server.asked for text in batch if text != PROBE_TEXTS[0]]


@pytest.mark.parametrize("way", [None, shuffled, in_base64])
def test_vectors_come_in_the_order_of_the_texts_whatever_the_order_of_the_answer(server, tmp_path, way):
    server.rule = way
    learner = make(server, tmp_path)
    np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS), atol=1e-6)
    assert sorted(asked(server)) == sorted(TEXTS)


def test_a_learner_is_trained_and_says_what_it_cost(server, tmp_path, caplog):
    learner = make(server, tmp_path, batch_size=16)
    learner.add_training_examples(rated(20))
    with caplog.at_level(logging.INFO, logger="dspy_qvl"):
        usage = learner.train()["usage"]
    assert (usage["texts"], usage["tokens"]) == (sum(map(len, server.asked)), 10 * sum(map(len, server.asked)))
    assert usage["requests"] == len(server.requests) == learner.embedder.usage.requests
    assert usage["cost"] is None  # litellm knows no price of this model
    assert f"asked openai/small-embedding: {usage['requests']} requests" in caplog.text
    assert learner.train()["usage"]["requests"] == 0  # nothing is paid for twice


def test_a_poisonous_text_is_named_by_its_position_and_the_rest_is_kept(server, tmp_path):
    server.rule = poison(TEXTS[17])
    learner = make(server, tmp_path, batch_size=16)
    with pytest.raises(
        TextsRefusedError, match=r"refused text 17 and 1 more .* of 41 .*HTTP 400.*the 39 others are embedded"
    ) as info:
        learner.embed([*TEXTS, TEXTS[17]])
    assert set(info.value.refused) == {17, 40}
    server.requests.clear()
    learner.embed([text for text in TEXTS if text != TEXTS[17]])
    assert server.requests == []


def test_a_poisonous_text_of_one_thread_does_not_reach_another(server, tmp_path):
    server.rule, server.delay = poison("poison"), 0.05
    learner = make(server, tmp_path, max_concurrency=1)
    outcomes = {}

    def one(text):
        try:
            outcomes[text] = learner.embed([text])
        except EmbeddingError as error:
            outcomes[text] = error

    threads = [threading.Thread(target=one, args=(text,)) for text in ("poison", *TEXTS[:9])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert isinstance(outcomes.pop("poison"), TextsRefusedError)
    assert all(isinstance(outcome, np.ndarray) for outcome in outcomes.values())


def test_a_batch_that_is_too_large_is_split_and_later_ones_beforehand(server, tmp_path):
    server.rule = too_many_texts(8)
    learner = make(server, tmp_path, batch_size=32, max_concurrency=1)
    learner.embed(TEXTS[:32])
    server.requests.clear()
    np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS), atol=1e-6)
    assert max(map(len, server.asked)) <= 8


def test_parts_of_a_batch_that_came_before_a_failure_are_kept(server, tmp_path):
    server.rule = too_many_texts(8)
    learner = make(server, tmp_path, batch_size=40, max_concurrency=1)
    learner.embed([f"{text} again" for text in TEXTS])  # requests are of at most 8 texts from here on
    server.requests.clear()
    server.next(None, None, status(401, "the key was withdrawn"))
    with pytest.raises(EmbeddingError, match=r"^the route .* failed with HTTP 401") as info:
        learner.embed(TEXTS)
    done = [text for batch in server.asked[:2] for text in batch]
    assert f"({len(done)} of 40 new texts are embedded and stored" in str(info.value)
    server.requests.clear()
    learner.embed(TEXTS)
    assert sorted([*done, *asked(server)]) == sorted(TEXTS)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(401, "bad key"), "failed with HTTP 401.*Check api_key"),
        (status(404, "no such model"), "failed with HTTP 404.*Check the name of the model"),
        (status(409, "not now"), "failed with HTTP 409: not now"),
    ],
)
def test_what_was_embedded_before_a_failure_is_kept_and_only_the_rest_is_asked_again(server, tmp_path, fault, message):
    learner = make(server, tmp_path, batch_size=10, max_concurrency=1)
    server.next(None, None, fault)
    with pytest.raises(EmbeddingError, match=message) as info:
        learner.embed(TEXTS)
    assert "20 of 40 new texts are embedded and stored in" in str(info.value)
    assert "sk-right" not in str(info.value)
    done = asked(server)[:20]
    server.requests.clear()
    again = make(server, tmp_path)  # as another process would
    np.testing.assert_allclose(again.embed(TEXTS), vectors(TEXTS), atol=1e-6)
    assert sorted([*done, *asked(server)]) == sorted(TEXTS)


def test_a_server_that_runs_another_model_now_is_noticed_before_its_vectors_are_stored(server, tmp_path):
    make(server, tmp_path).embed(TEXTS[:20])
    server.rule = other_model
    later = make(server, tmp_path)
    with pytest.raises(
        EmbeddingError, match=r"gives other vectors than those stored under its name.*model was changed"
    ):
        later.embed(TEXTS)
    server.rule = None
    np.testing.assert_allclose(later.embed(TEXTS), vectors(TEXTS), atol=1e-6)


def test_a_wrong_answer_that_was_refused_leaves_nothing_behind(server, tmp_path):
    make(server, tmp_path).embed(TEXTS[:5])
    later = make(server, tmp_path)
    server.next(other_size)
    with pytest.raises(EmbeddingError, match="gives other vectors than those stored under its name"):
        later.embed(TEXTS[20:])
    np.testing.assert_allclose(later.embed(TEXTS), vectors(TEXTS), atol=1e-6)


def test_a_key_that_was_left_behind_is_missed_before_anything_is_sent(server, tmp_path, monkeypatch):
    learner = make(server, tmp_path)
    learner.add_training_examples(rated(6))
    learner.train(cv_folds=2)
    again = pickle.loads(pickle.dumps(learner))
    server.requests.clear()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EmbeddingError, match=r"a missing key: api_key= does not travel.*set OPENAI_API_KEY there"):
        again.predict("a new text")
    assert server.requests == []
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-worker")
    again.predict("a new text")
    assert server.requests[-1].headers["authorization"] == "Bearer sk-of-the-worker"


@pytest.mark.parametrize("address", ["", " ", "localhost", "ftp://host/v1", "http://", "http://127.0.0.1:99999/v1"])
def test_an_address_no_request_could_be_sent_to_is_refused(address):
    with pytest.raises(InputError, match="api_base must be an address such as"):
        Qwen3EmbeddingValueLearner("openai/small-embedding", api_base=address)


@pytest.mark.parametrize("key", ["", "  ", "sk-right\n", "sk-rüght"])
def test_a_key_no_header_can_hold_is_refused_and_not_shown(key):
    with pytest.raises(InputError, match="api_key is blank, or holds spaces") as info:
        Qwen3EmbeddingValueLearner("openai/small-embedding", api_key=key)
    assert "right" not in str(info.value)


def test_vectors_of_another_length_are_refused(server, tmp_path):
    learner = make(server, tmp_path)
    learner.embed(TEXTS[:5])
    server.rule = other_size
    with pytest.raises(EmbeddingError, match="gave vectors of 64 columns before and of 32 now"):
        learner.embed(TEXTS)


def test_threads_share_requests(server, tmp_path):
    server.delay = 0.02
    learner = make(server, tmp_path, max_concurrency=1)
    learner.embed(TEXTS[:1])
    server.requests.clear()

    def some(thread):
        for number in range(10):
            learner.embed([f"text {thread} {number}"])

    threads = [threading.Thread(target=some, args=(thread,)) for thread in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(asked(server)) == 160
    assert len(server.requests) <= 160 / 6
    assert server.most_at_once == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_batches_of_one_call_are_in_flight_together_up_to_the_limit(server, tmp_path, kind):
    server.delay = 0.1
    learner = make(server, tmp_path, batch_size=5, max_concurrency=4)
    learner.embed(["first"])
    start = time.perf_counter()
    given = learner.embed(TEXTS) if kind == "sync" else asyncio.run(learner.aembed(TEXTS))
    seconds = time.perf_counter() - start
    np.testing.assert_allclose(given, vectors(TEXTS), atol=1e-6)
    assert server.most_at_once == 4
    assert seconds < 8 * 0.1


def test_a_learner_and_a_reranker_are_awaited_with_many_requests_at_once(server, tmp_path):
    learner = make(server, tmp_path, max_concurrency=5)
    learner.add_training_examples(rated(12))
    learner.train(cv_folds=2)
    server.delay = 0.1

    async def main():
        scores = await asyncio.gather(*(learner.acall(text=text) for text in TEXTS[12:32]))
        ranked = await asyncio.gather(
            *(Reranker(learner).acall(query=f"query {n}", passages=[f"one {n}", f"two {n}"]) for n in range(4))
        )
        return scores, ranked

    scores, ranked = asyncio.run(main())
    assert server.most_at_once == 5
    assert [one.score for one in scores] == [learner.predict(text) for text in TEXTS[12:32]]
    assert all(sorted(one.indices) == [0, 1] for one in ranked)


# A file names a model; nobody but the caller sends texts to one


@pytest.fixture
def environment(server, monkeypatch):
    """Where a route of OpenAI's is sent when nobody says anything else, and with which key."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.v1)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    return server


def saved_with(model, path):
    learner = Qwen3EmbeddingValueLearner(model, 16, cache_dir=None, features=None)
    learner.add_training_examples(rated(10))
    learner.train(cv_folds=2)
    learner.save_model(path)
    return learner


def test_a_file_sends_no_text_to_a_hosted_model_that_the_caller_did_not_name(environment, tmp_path):
    old = saved_with("openai/an-embedding", tmp_path / "m")
    value, n_asked = old.predict("a new text"), len(environment.requests)
    for arguments in ({}, {"api_key": "sk-mine"}):
        default = Qwen3EmbeddingValueLearner(cache_dir=None, features=None, **arguments)
        with pytest.raises(StateError, match=r"hosted model 'openai/an-embedding', .*model_name='openai/an-embedding'"):
            default.load_model(tmp_path / "m")
        with pytest.raises(StateError, match="trust_model=True"):
            default.load_model(tmp_path / "m")
        assert default.model_name == DEFAULT_MODEL
        assert default.training_texts == []
        with pytest.raises(NotFittedError, match="train"):
            default.predict("a new text")
    assert len(environment.requests) == n_asked
    named = Qwen3EmbeddingValueLearner("openai/an-embedding", cache_dir=None, features=None)
    named.load_model(tmp_path / "m")
    trusting = Qwen3EmbeddingValueLearner(cache_dir=None, features=None)
    trusting.load_model(tmp_path / "m", trust_model=True)
    assert named.predict("a new text") == trusting.predict("a new text") == value
    trusting.load_model(tmp_path / "m")  # it is this learner's model by now
    with pytest.raises(InputError, match="trust_model must be True or False"):
        trusting.load_model(tmp_path / "m", trust_model="yes")


def test_every_provider_counts_as_hosted_and_no_model_in_process_does(tmp_path):
    saved_with("lexical", tmp_path / "m")
    content = read_file(tmp_path / "m")
    for provider in sorted(PROVIDERS):
        content["settings"]["model_name"] = f"{provider}/some-embedding"
        write_file(tmp_path / "forged", content)
        with pytest.raises(StateError, match=f"hosted model '{provider}/some-embedding'"):
            Qwen3EmbeddingValueLearner(cache_dir=None, features=None).load_model(tmp_path / "forged")
    default = Qwen3EmbeddingValueLearner(cache_dir=None, features=None)
    default.load_model(tmp_path / "m")
    assert default.model_name == "lexical"


def test_other_ways_to_read_a_fit_never_ask_the_model_it_names(environment, tmp_path):
    old = saved_with("openai/an-embedding", tmp_path / "m")
    n_asked = len(environment.requests)
    migrated = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=None)
    migrated.migrate(tmp_path / "m", (1.0,), cv_folds=2)
    assert migrated.model_name == "lexical"
    default = Qwen3EmbeddingValueLearner(cache_dir=None, features=None)
    default.ridge.load_state(old.ridge.dump_state())
    with pytest.raises(StateError, match="another embedding model"):
        default.predict("a new text")
    assert len(environment.requests) == n_asked
