"""Texts that make a server fail: they are named, the others keep their vectors, and the search for them is bounded.

Refusals (HTTP 400 and the like) are in test_hosted.py.
"""

import asyncio
import itertools
import math
import threading
import time
from collections import Counter

import numpy as np
import pytest

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner, TextsRefusedError
from dspy_qvl.embedding.models.hosted.halving import PROBE, Batch, Fault
from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits
from tests.loopback import (
    Loopback,
    close_mid_body,
    close_unanswered,
    hang,
    one_too_few,
    status,
    too_many_texts,
    unparsable,
    vectors,
    where,
)

TRIES = 4
QUICK = Limits(timeout=30.0, max_attempts=TRIES, first_wait=0.01)
TEXTS = [f"text number {number}" for number in range(256)]


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """Importing litellm takes seconds, and offline it would retry a download; timeouts below are short."""
    with pytest.MonkeyPatch.context() as patch, Loopback() as server:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        hosted(server)(["a text"])
        yield


@pytest.fixture
def server():
    with Loopback() as server:
        yield server


def hosted(server: Loopback, limits: Limits = QUICK) -> HostedModel:
    return HostedModel("openai/small-embedding", api_key="k", api_base=server.v1, limits=limits)


def refused_by(model: HostedModel, texts: list[str]) -> TextsRefusedError:
    with pytest.raises(TextsRefusedError, match=r"^the route 'openai/small-embedding' refused \d+ of") as caught:
        model(texts)
    return caught.value


def assert_found(error: TextsRefusedError, texts: list[str], bad: list[int]) -> None:
    rest = [place for place in range(len(texts)) if place not in bad]
    assert list(error.refused) == bad
    assert sorted(error.vectors) == rest
    np.testing.assert_array_equal(
        np.stack([error.vectors[place] for place in rest]), vectors([texts[place] for place in rest])
    )


def assert_paid_once(server: Loopback, texts: list[str], bad: list[int]) -> None:
    spoiled = {texts[place] for place in bad}
    answered = Counter(text for asked in server.asked if not spoiled & set(asked) for text in asked if text != PROBE)
    assert answered == {text: 1 for text in texts if text not in spoiled}


# What one text may do to a server, and what is said of it.
FAULTS = {
    "HTTP 500: the runner crashed": status(500, "the runner crashed"),
    "HTTP 503: no": status(503),
    "HTTP 504: no": status(504),
    r"a connection error \(ReadError\)": close_mid_body,
    r"a connection error \(\w+\)": close_unanswered,
    "an answer that cannot be read": unparsable,
    r"\d+ vectors? for \d+ texts?": one_too_few,
    "HTTP 403: flagged": status(403, "flagged"),  # moderation, where the key has been good enough before
}


class TestTextsAtFault:
    @pytest.mark.parametrize("reason", FAULTS)
    def test_the_text_at_fault_is_named_and_the_rest_kept(self, server, reason):
        model = hosted(server)
        model(["before"])
        server.requests.clear()
        server.rule = where([TEXTS[5]], FAULTS[reason])
        with pytest.raises(TextsRefusedError, match=rf"refused 1 of 8 texts: text 5 \({reason}.*\); the other 7 have"):
            model(TEXTS[:8])
        last = max(number for number, asked in enumerate(server.asked) if TEXTS[5] in asked)
        assert server.asked[last : last + 2] == [[TEXTS[5]], [PROBE]]
        assert len(server.requests) <= TRIES + 1 + 2 * 3 + 2

    @pytest.mark.parametrize("bad", [[0], [20], [3, 4, 17]])
    def test_all_that_crash_the_server_are_found_and_no_other_is_paid_for_twice(self, server, bad):
        server.rule = where([TEXTS[place] for place in bad], status(500))
        model = hosted(server)
        assert_found(refused_by(model, TEXTS[:21]), TEXTS[:21], bad)
        assert_paid_once(server, TEXTS[:21], bad)
        assert len(server.requests) <= TRIES + 1 + len(bad) * (2 * 5 + 2)
        assert model.usage.requests == len(server.requests)
        assert model.batch_limit is None  # a bad text says nothing of how many a request may hold

    def test_where_all_but_the_harmless_one_fail_all_are_named(self, server):
        server.rule = where(TEXTS[:6], status(500))
        assert list(refused_by(hosted(server), TEXTS[:6]).refused) == list(range(6))
        assert len(server.requests) <= TRIES + 4 * 6

    def test_a_text_that_hangs_is_named_and_the_rest_kept(self, server):
        server.rule = where([TEXTS[2]], hang())
        started = time.monotonic()
        error = refused_by(hosted(server, Limits(timeout=0.4, first_wait=0.01)), TEXTS[:4])
        assert_found(error, TEXTS[:4], [2])
        assert error.refused[2] == "a timeout: no answer within 0.4 s"
        hung = [asked for asked in server.asked if TEXTS[2] in asked]
        assert hung == [TEXTS[:4]] * 2 + [TEXTS[2:4]] + [TEXTS[2:3]] * 2
        assert time.monotonic() - started < 5 * 0.4 + 2

    def test_a_text_that_came_alone_is_named_once_a_harmless_one_passes(self, server):
        server.rule = where(TEXTS[:1], status(500))
        assert refused_by(hosted(server), TEXTS[:1]).refused == {0: "HTTP 500: no"}
        assert server.asked == [TEXTS[:1]] * TRIES + [[PROBE]]

    def test_chance_names_nobody(self, server):
        server.next(*[status(500)] * TRIES, None, status(502), None, status(500), None)
        np.testing.assert_array_equal(np.stack(hosted(server)(TEXTS[:2])), vectors(TEXTS[:2]))
        one, other = TEXTS[:1], TEXTS[1:2]
        assert server.asked == [TEXTS[:2]] * TRIES + [[PROBE], one, one, other, other]

    def test_a_text_that_crashes_the_server_of_one_caller_does_not_reach_another(self, server, tmp_path):
        server.rule, server.delay = where(["bad"], status(500)), 0.05
        learner = Qwen3EmbeddingValueLearner(embedder=hosted(server), cache_dir=tmp_path, features=None)
        outcomes = {}

        def one(texts):
            try:
                outcomes[texts[0]] = learner.embed(texts)
            except EmbeddingError as error:
                outcomes[texts[0]] = error

        calls = [[TEXTS[0], TEXTS[1], "bad", TEXTS[2]], *([text] for text in TEXTS[10:19])]
        threads = [threading.Thread(target=one, args=(texts,)) for texts in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        error = outcomes.pop(TEXTS[0])
        assert isinstance(error, TextsRefusedError)
        assert error.refused == {2: "HTTP 500: no"}
        assert "refused text 2 of 4 ('bad'): HTTP 500: no. Leave it out or change it; the 3 others are" in str(error)
        assert sorted(outcomes) == TEXTS[10:19]
        assert all(isinstance(outcome, np.ndarray) for outcome in outcomes.values())
        assert server.most_at_once == 1  # the search asks one request after the other
        server.requests.clear()
        learner.embed([*TEXTS[:3], *TEXTS[10:19]])
        assert server.requests == []

    def test_an_async_caller_hears_of_its_text_too(self, server, tmp_path):
        server.rule = where([TEXTS[1]], status(500))
        learner = Qwen3EmbeddingValueLearner(embedder=hosted(server), cache_dir=tmp_path, features=None)

        async def both():
            return await asyncio.gather(learner.aembed(TEXTS[:3]), learner.aembed(TEXTS[3:5]), return_exceptions=True)

        error, others = asyncio.run(both())
        assert isinstance(error, TextsRefusedError)
        assert list(error.refused) == [1]
        np.testing.assert_allclose(others, vectors(TEXTS[3:5]), atol=1e-6)

    def test_the_search_keeps_the_pace(self, server):
        server.rule = where([TEXTS[1]], status(500))
        refused_by(hosted(server, Limits(requests_per_minute=1200, max_attempts=2, first_wait=0.01)), TEXTS[:4])
        times = [request.at for request in server.requests]
        assert times[-1] - times[0] >= 0.7 * 0.05 * (len(times) - 1)  # each arrives when the machine lets it


class TestRoutesAtFault:
    def test_a_server_that_is_down_is_asked_a_few_times_more_and_no_text_blamed(self, server):
        server.rule = status(500, "down")
        with pytest.raises(
            EmbeddingError, match=rf"failed with HTTP 500 after {TRIES} attempts in .* s: down\.$"
        ) as caught:
            hosted(server)(TEXTS)
        assert type(caught.value) is EmbeddingError
        assert server.asked == [TEXTS] * TRIES + [[PROBE]] * 2

    def test_a_server_that_hangs_is_left_after_four_timeouts(self, server):
        server.rule = hang()
        started = time.monotonic()
        with pytest.raises(EmbeddingError, match=r"failed with a timeout after 2 attempts in 0\.\d s") as caught:
            hosted(server, Limits(timeout=0.2, first_wait=0.01))(TEXTS[:21])
        assert type(caught.value) is EmbeddingError
        assert server.asked == [TEXTS[:21]] * 2 + [[PROBE]] * 2
        assert time.monotonic() - started < 4 * 0.2 + 1.5

    def test_a_server_that_goes_down_during_the_search_is_found_out(self, server):
        server.next(*[status(500)] * TRIES, None)
        server.rule = status(500, "down")
        with pytest.raises(EmbeddingError, match=r"failed with HTTP 500 after 2 attempts in .*: down") as caught:
            hosted(server)(TEXTS)
        assert type(caught.value) is EmbeddingError
        assert len(server.requests) == TRIES + 1 + 7 + 2 + 2  # 128, 64, … 2; one text twice, and the harmless one

    def test_what_passes_after_two_tries_is_not_split(self, server):
        server.next(status(503), status(503))
        model = hosted(server)
        np.testing.assert_array_equal(np.stack(model(TEXTS[:21])), vectors(TEXTS[:21]))
        assert server.asked == [TEXTS[:21]] * 3
        assert model.batch_limit is None

    @pytest.mark.parametrize("busy", [status(429), status(529), status(503, retry_after="0.01")])
    def test_a_busy_server_is_waited_for_and_never_sent_halves(self, server, busy):
        server.rule = busy
        with pytest.raises(EmbeddingError, match=rf"failed with HTTP \d+ after {TRIES} attempts") as caught:
            hosted(server)(TEXTS[:21])
        assert type(caught.value) is EmbeddingError
        assert server.asked == [TEXTS[:21]] * TRIES

    def test_a_rate_limit_during_the_search_is_waited_for(self, server):
        server.next(*[status(500)] * TRIES, None, status(429), status(429))
        server.rule = where([TEXTS[1]], status(500))
        assert_found(refused_by(hosted(server), TEXTS[:4]), TEXTS[:4], [1])
        assert server.asked[TRIES + 1 : TRIES + 4] == [TEXTS[:2]] * 3

    @pytest.mark.parametrize("code", [500, 504])
    def test_a_batch_too_large_for_the_server_is_halved_and_the_size_remembered(self, server, code):
        server.rule = too_many_texts(8, code)
        model = hosted(server)
        np.testing.assert_array_equal(np.stack(model(TEXTS[:16])), vectors(TEXTS[:16]))
        assert model.batch_limit == 8
        server.requests.clear()
        model(TEXTS[:16])
        assert [len(asked) for asked in server.asked] == [8, 8]


def searched(n_texts: int, bad: set[int], limit: int | None = None) -> tuple[Batch, list[tuple[list[str], int]]]:
    """A batch whose `bad` texts hang for a second a try, and every request with its tries."""
    asked = []

    async def ask(texts, tries):
        hangs = bool({TEXTS[place] for place in bad} & set(texts))
        n_tries = min(tries or 2, 2) if hangs else 1
        asked.append((texts, n_tries))
        return Fault("hung", "the route hung.", lost=float(n_tries)) if hangs else list(vectors(texts))

    batch = Batch(TEXTS[:n_texts], ask, limit=limit, timeout=1.0)
    asyncio.run(batch.fill())
    return batch, asked


def found(batch: Batch) -> set[int]:
    return {place for place, row in batch.rows.items() if not isinstance(row, np.ndarray)}


class TestBounds:
    @pytest.mark.parametrize("n_texts", [1, 2, 3, 6])
    @pytest.mark.parametrize("limit", [None, 3])
    def test_any_few_texts_are_found_exactly_and_no_other_paid_for_twice(self, n_texts, limit):
        for n_bad in range(min(n_texts, 4) + 1):
            for bad in map(set, itertools.combinations(range(n_texts), n_bad)):
                batch, asked = searched(n_texts, bad, limit)
                assert found(batch) == bad
                assert sorted(batch.rows) == list(range(n_texts))
                assert batch.limit == limit
                spoiled = {TEXTS[place] for place in bad}
                paid = Counter(text for texts, _ in asked if not spoiled & set(texts) for text in texts)
                assert paid - Counter({PROBE: paid[PROBE]}) == Counter(set(TEXTS[:n_texts]) - spoiled)

    def test_one_text_that_hangs_costs_log2_timeouts_and_three(self):
        for n_texts in (1, 2, 21, 64, 256):
            depth = math.ceil(math.log2(n_texts))
            for place in {0, 1, n_texts // 2, n_texts - 1} & set(range(n_texts)):
                batch, asked = searched(n_texts, {place})
                assert found(batch) == {place}
                hung = sum(n_tries for texts, n_tries in asked if TEXTS[place] in texts)
                assert hung <= (depth + 3 if n_texts > 1 else 2)
                assert len(asked) <= 1 + 1 + 2 * depth + 1  # the whole, the harmless one, halves, the harmless one

    def test_four_texts_that_hang_are_found_wherever_they_are(self):
        for bad in ({0, 64, 128, 192}, {0, 1, 254, 255}, {63, 64, 127, 128}, {5, 6, 7, 8}):
            assert found(searched(256, bad)[0]) == bad

    def test_with_more_texts_that_hang_the_search_ends_and_says_what_it_found(self):
        patience = 4 * (math.ceil(math.log2(64)) + 1)
        with pytest.raises(
            EmbeddingError,
            match=r"^the route hung\. A harmless text passes, .* took \d\d s\. It found .* and \d more",
        ) as caught:
            searched(64, set(range(64)))
        lost = int(str(caught.value).split(" took ")[1].split(" s.")[0])
        assert patience < lost <= patience + 2
