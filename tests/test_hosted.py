"""Hosted routes against a real server on this machine: what is sent, what comes back, what becomes of each fault."""

import asyncio
import collections
import copy
import email.utils
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import dspy
import numpy as np
import pytest

from dspy_qvl import Qwen3EmbeddingValueLearner
from dspy_qvl.embedding.models.hosted.halving import PROBE
from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits
from dspy_qvl.embedding.models.hosted.providers import batch_size
from dspy_qvl.embedding.models.model import Usage
from dspy_qvl.errors import EmbeddingError, InputError, TextsRefusedError
from tests.loopback import (
    Loopback,
    Reply,
    answer,
    close_mid_body,
    close_unanswered,
    closed_port,
    echo_key,
    filled,
    hang,
    in_base64,
    one_too_few,
    other_model,
    other_size,
    poison,
    ragged,
    shuffled,
    status,
    too_many_texts,
    unnumbered,
    unparsable,
    vectors,
)

KEY = "sk-secret-123456"
QUICK = Limits(timeout=1.0, max_attempts=3, first_wait=0.01)
THREADS = ThreadPoolExecutor(16)
TEXTS = [f"text number {number}" for number in range(64)]
VARIABLES = (
    "OPENAI OPENROUTER DASHSCOPE NEBIUS TOGETHERAI TOGETHER TOGETHER_AI FIREWORKS FIREWORKS_AI MISTRAL NVIDIA_NIM"
)

# route, the end of api_base, where it is asked, and the model as it is sent
ROUTES = [
    ("openrouter/qwen/qwen3-embedding-8b", "/v1", "/v1/embeddings", "qwen/qwen3-embedding-8b"),
    ("dashscope/text-embedding-v4", "/v1", "/v1/embeddings", "text-embedding-v4"),
    ("hosted_vllm/Qwen/Qwen3-Embedding-0.6B", "/v1", "/v1/embeddings", "Qwen/Qwen3-Embedding-0.6B"),
    ("nebius/Qwen/Qwen3-Embedding-8B", "/v1", "/v1/embeddings", "Qwen/Qwen3-Embedding-8B"),
    ("together_ai/Qwen/Qwen3-Embedding-8B", "/v1", "/v1/embeddings", "Qwen/Qwen3-Embedding-8B"),
    ("litellm_proxy/qwen3-embedding", "", "/embeddings", "qwen3-embedding"),
    ("ollama/qwen3-embedding:0.6b", "", "/api/embed", "qwen3-embedding:0.6b"),
    ("openai/Qwen3-Embedding-4B", "/v1", "/v1/embeddings", "Qwen3-Embedding-4B"),
    (
        "fireworks_ai/accounts/fireworks/models/qwen3-embedding-8b",
        "/v1",
        "/v1/embeddings",
        "accounts/fireworks/models/qwen3-embedding-8b",
    ),
    ("mistral/mistral-embed", "/v1", "/v1/embeddings", "mistral-embed"),
]


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """Importing litellm takes seconds, and offline it would retry a download; timeouts below are short."""
    with pytest.MonkeyPatch.context() as patch, Loopback() as server:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        for route, end, _, _ in ROUTES:
            HostedModel(route, api_key=KEY, api_base=server.root + end)(["a text"])
        yield


@pytest.fixture
def server(monkeypatch):
    for name in VARIABLES.split():
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)
    with Loopback() as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Both ways to ask a model."""
    if request.param == "sync":
        return lambda model, texts: model(texts)
    return lambda model, texts: asyncio.run(awaited(model, texts))


async def awaited(model: HostedModel, texts: list[str]) -> list[np.ndarray]:
    """A call of a model from an event loop, in a thread, as learners make it."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, model, texts)


def hosted(server: Loopback, route: str = "openai/small-embedding", limits: Limits = QUICK, **given) -> HostedModel:
    end = next((end for name, end, _, _ in ROUTES if name == route), "/v1")
    return HostedModel(route, **{"api_key": KEY, "api_base": server.root + end, "limits": limits, **given})


def assert_vectors_of(got, texts):
    np.testing.assert_array_equal(np.stack(got), vectors(texts))


class TestRoutes:
    @pytest.mark.parametrize(("route", "end", "path", "model"), ROUTES, ids=[route[0] for route in ROUTES])
    def test_every_route_is_asked_for_full_vectors_in_its_own_words(self, server, ask, route, end, path, model):
        got = ask(HostedModel(route, api_key=KEY, api_base=server.root + end, limits=QUICK), TEXTS[:3])
        assert_vectors_of(got, TEXTS[:3])
        [request] = server.requests
        assert request.path == path
        assert request.body == {"model": model, "input": TEXTS[:3]}  # and nothing else: no `dimensions`
        sent = request.headers.get("authorization")
        assert sent == f"Bearer {KEY}" or (route.startswith("ollama/") and sent is None)  # by the version of litellm

    @pytest.mark.parametrize(
        "route",
        ["hosted_vllm/Qwen/Qwen3-Embedding-0.6B", "ollama/qwen3-embedding:0.6b", "openai/local", "litellm_proxy/x"],
    )
    def test_a_server_without_keys_needs_none(self, server, route):
        assert_vectors_of(hosted(server, route, api_key=None)(TEXTS[:2]), TEXTS[:2])
        assert server.requests[0].headers.get("authorization") in (None, "Bearer none")

    @pytest.mark.parametrize(
        ("route", "variable"),
        [
            ("openrouter/qwen/qwen3-embedding-8b", "OPENROUTER_API_KEY"),
            ("dashscope/text-embedding-v4", "DASHSCOPE_API_KEY"),
            ("nebius/Qwen/Qwen3-Embedding-8B", "NEBIUS_API_KEY"),
            ("together_ai/Qwen/Qwen3-Embedding-8B", "TOGETHERAI_API_KEY"),
            ("fireworks_ai/accounts/fireworks/models/qwen3-embedding-8b", "FIREWORKS_AI_API_KEY"),
            ("openai/text-embedding-3-small", "OPENAI_API_KEY"),
        ],
    )
    def test_without_a_key_the_providers_variable_is_read(self, server, monkeypatch, route, variable):
        monkeypatch.setenv(variable, "sk-from-the-environment")
        hosted(server, route, api_key=None)(TEXTS[:1])
        assert server.requests[0].headers["authorization"] == "Bearer sk-from-the-environment"

    @pytest.mark.parametrize(
        "provider", ["dashscope", "fireworks_ai", "mistral", "nebius", "nvidia_nim", "together_ai"]
    )
    def test_no_provider_is_sent_the_key_of_another(self, server, monkeypatch, provider):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-only")
        with pytest.raises(EmbeddingError, match=r"a missing key: give api_key, or set \w+_API_KEY\.$"):
            hosted(server, f"{provider}/x", api_key=None)(TEXTS[:1])
        assert server.requests == []

    def test_openai_itself_without_a_key_fails_without_a_request(self, server):
        with pytest.raises(
            EmbeddingError, match=r"'openai/x' failed with a missing key: give api_key, or set OPENAI_API_KEY"
        ):
            HostedModel("openai/x", limits=QUICK)(TEXTS[:1])

    def test_a_server_of_ones_own_without_an_address_is_asked_for_it_at_once(self):
        with pytest.raises(EmbeddingError, match="a missing address: give api_base, or set HOSTED_VLLM_API_BASE"):
            HostedModel("hosted_vllm/x", limits=QUICK)(TEXTS[:1])

    def test_a_proxy_without_an_address_is_not_taken_for_openai(self, server):
        with pytest.raises(EmbeddingError, match="a missing address: give api_base, or set LITELLM_PROXY_API_BASE"):
            HostedModel("litellm_proxy/x", api_key=KEY, limits=QUICK)(TEXTS[:1])

    def test_a_provider_litellm_cannot_ask_is_named(self, server):
        with pytest.raises(EmbeddingError, match=r"^the route 'deepinfra/x' failed with LiteLLMUnknownProvider"):
            hosted(server, "deepinfra/x")(TEXTS[:2])
        assert server.requests == []

    def test_dashscope_is_sent_ten_texts_at_a_time(self, server, ask):
        assert_vectors_of(ask(hosted(server, "dashscope/text-embedding-v4"), TEXTS[:25]), TEXTS[:25])
        assert [len(texts) for texts in server.asked] == [10, 10, 5]
        assert batch_size("dashscope/text-embedding-v4") == 10
        assert batch_size("openrouter/qwen/qwen3-embedding-8b") == 64

    def test_no_text_is_no_request(self, server, ask):
        assert ask(hosted(server), []) == []
        assert server.requests == []


class TestAnswers:
    @pytest.mark.filterwarnings("ignore:Pydantic serializer")  # OpenAI's client expects no base64 it did not ask for
    @pytest.mark.parametrize("fault", [shuffled, unnumbered, in_base64])
    def test_an_unusual_answer_gives_the_usual_vectors(self, server, ask, fault):
        server.rule = fault
        assert_vectors_of(ask(hosted(server), TEXTS[:5]), TEXTS[:5])
        assert len(server.requests) == 1

    @pytest.mark.parametrize("fault", [other_size, other_model])
    def test_vectors_of_another_model_are_handed_on_as_they_are(self, server, fault):
        server.rule = fault
        [got] = hosted(server)(TEXTS[:1])
        expected = vectors(TEXTS[:1])[0]
        np.testing.assert_array_equal(got, expected[:32] if fault is other_size else expected[::-1])

    def test_a_wrong_count_is_refused(self, server, ask):
        server.rule = one_too_few
        with pytest.raises(EmbeddingError, match=r"'openai/small-embedding' gave 3 vectors for 4 texts"):
            ask(hosted(server), TEXTS[:4])
        assert server.asked == [TEXTS[:4], [PROBE]]

    def test_vectors_of_different_lengths_are_refused(self, server, ask):
        server.rule = ragged
        with pytest.raises(EmbeddingError, match="gave vectors of different lengths for one batch") as caught:
            ask(hosted(server), TEXTS[:4])
        assert caught.value.vectors == {}

    def test_vectors_of_different_lengths_in_two_requests_are_refused(self, server):
        server.next(None, other_size)
        with pytest.raises(EmbeddingError, match="gave vectors of different lengths for one batch"):
            hosted(server, "dashscope/text-embedding-v4")(TEXTS[:20])

    @pytest.mark.parametrize(
        ("value", "reason"), [(float("nan"), "NaN or infinity"), (1e39, "NaN or infinity"), (0.0, "all zeros")]
    )
    def test_a_text_without_a_usable_vector_is_named_and_the_rest_kept(self, server, ask, value, reason):
        server.rule = filled(value, TEXTS[1])
        expected = rf"refused 1 of 4 texts: text 1 \(its vector (holds|is) {reason}\); the other 3 have their vectors"
        with pytest.raises(TextsRefusedError, match=expected) as caught:
            ask(hosted(server), TEXTS[:4])
        assert list(caught.value.refused) == [1]
        assert_vectors_of([caught.value.vectors[place] for place in (0, 2, 3)], [TEXTS[0], *TEXTS[2:4]])
        assert len(server.requests) == 1

    def test_where_every_vector_is_unusable_the_route_has_failed(self, server, ask):
        server.rule = filled(float("nan"))
        with pytest.raises(EmbeddingError, match="gave no usable vector for 4 texts: its vector holds NaN") as caught:
            ask(hosted(server), TEXTS[:4])
        assert type(caught.value) is EmbeddingError

    def test_an_answer_that_cannot_be_read_points_to_the_address(self, server, ask):
        server.rule = unparsable
        with pytest.raises(EmbeddingError, match=r"an answer that cannot be read: JSONDecodeError.* Check api_base"):
            ask(hosted(server), TEXTS[:4])
        assert server.asked == [TEXTS[:4], [PROBE]]

    def test_a_known_address_is_asked_again_for_what_cannot_be_read(self, server):
        model = hosted(server)
        server.next(None, unparsable)
        for _ in range(2):
            assert_vectors_of(model(TEXTS[:4]), TEXTS[:4])
        assert len(server.requests) == 3

    @pytest.mark.filterwarnings("ignore:Pydantic serializer")
    def test_embeddings_that_are_no_vectors_are_refused(self, server):
        server.rule = lambda request: answer(request, lambda rows: rows[0].update(embedding="not base64!"))
        with pytest.raises(EmbeddingError, match="an answer that cannot be read"):
            hosted(server)(TEXTS[:1])


# What may pass, by how it is told of.
PASSING = {
    **{f"HTTP {code}": status(code) for code in (408, 429, 500, 502, 503, 504, 529)},
    "a timeout": hang(5),
    "a connection error (ReadError)": close_mid_body,
    "a connection error (ReadError) ": close_unanswered,
}


class TestFailuresThatMayPass:
    @pytest.mark.parametrize("fault", PASSING)
    def test_the_same_is_asked_again(self, server, ask, fault):
        # Only a hang is meant to run out of time: on a busy machine a proper answer can take some tenths of a second.
        model = hosted(server, limits=Limits(timeout=1.5 if fault == "a timeout" else 30.0, first_wait=0.01))
        server.next(PASSING[fault])
        assert_vectors_of(ask(model, TEXTS[:4]), TEXTS[:4])
        assert server.asked == [TEXTS[:4]] * 2
        assert model.usage.retries == 1

    def test_a_failure_that_does_not_pass_after_some_that_may_counts_them_all(self, server):
        server.next(status(500), status(503), status(403))
        with pytest.raises(
            EmbeddingError, match=r"failed with HTTP 403 after 3 attempts in \d\.\d s: no\. Check api_key"
        ):
            hosted(server)(TEXTS[:1])

    def test_a_retry_is_logged(self, server, caplog):
        caplog.set_level("INFO", logger="dspy_qvl")
        server.next(status(503, "busy"))
        hosted(server)(TEXTS[:1])
        assert re.search(r"openai/small-embedding: HTTP 503 \(busy\); asking again in 0\.0 s", caplog.text)

    @pytest.mark.parametrize("fault", PASSING)
    def test_the_last_failure_names_route_type_attempts_and_seconds(self, server, ask, fault):
        server.rule = PASSING[fault]
        hangs = fault == "a timeout"
        n_tries = 2 if hangs else 3
        expected = (
            rf"^the route 'openai/small-embedding' failed with {re.escape(fault.strip())} "
            rf"after {n_tries} attempts in \d\.\d s"
        )
        with pytest.raises(EmbeddingError, match=expected) as caught:
            ask(
                hosted(server, limits=Limits(timeout=0.2 if hangs else 30.0, max_attempts=3, first_wait=0.01)),
                TEXTS[:4],
            )
        assert type(caught.value) is EmbeddingError  # no text is blamed: a harmless one fails as well
        busy = fault in ("HTTP 429", "HTTP 529")
        assert server.asked == [TEXTS[:4]] * n_tries + [[PROBE]] * (0 if busy else 2)

    @pytest.mark.parametrize(("route", "fault"), [(route[0], fault) for route in ROUTES for fault in (500, 429)])
    def test_a_request_is_never_repeated_behind_our_back(self, server, route, fault):
        server.rule = status(fault)
        with pytest.raises(EmbeddingError, match=f"failed with HTTP {fault} after 1 attempt in"):
            hosted(server, route, limits=Limits(max_attempts=1))(TEXTS[:2])
        assert server.asked == [TEXTS[:2]] + ([[PROBE]] if fault == 500 else [])

    @pytest.mark.parametrize("route", ["openai/x", "ollama/x", "hosted_vllm/x"])
    def test_a_refused_connection_is_tried_again(self, ask, route):
        model = HostedModel(route, api_key=KEY, api_base=f"http://127.0.0.1:{closed_port()}", limits=QUICK)
        with pytest.raises(EmbeddingError, match=r"a connection error \(ConnectError\) after 3 attempts in .*Connect"):
            ask(model, TEXTS[:4])
        assert model.usage == Usage(retries=3)  # the last one of the harmless text

    def test_a_hanging_ollama_is_left_in_time(self, server, ask):
        server.rule = hang(5)
        started = time.monotonic()
        with pytest.raises(EmbeddingError, match=r"a timeout after 1 attempt in 0\.\d s: no answer within 0.2 s"):
            ask(hosted(server, "ollama/qwen3-embedding:0.6b", limits=Limits(timeout=0.2, max_attempts=1)), TEXTS[:4])
        assert time.monotonic() - started < 1.5

    def test_an_error_inside_an_answer_counts_as_its_status(self, server, ask):
        body = json.dumps({"error": {"message": "upstream is overloaded", "code": 502}}).encode()
        server.next(lambda request: Reply(body=body))
        assert_vectors_of(ask(hosted(server, "openrouter/qwen/qwen3-embedding-8b"), TEXTS[:4]), TEXTS[:4])
        assert len(server.requests) == 2

    def test_waits_grow_and_are_bounded_in_sum(self, server):
        server.rule = status(500)
        with pytest.raises(EmbeddingError, match="after 4 attempts"):
            hosted(server, limits=Limits(first_wait=0.1, max_attempts=4))(TEXTS[:1])
        times = [request.at for request in server.requests[:4]]
        assert all(gap >= least for gap, least in zip(np.diff(times), [0.05, 0.1, 0.2], strict=True))
        with pytest.raises(EmbeddingError, match=r"after 1 attempt in 0\.\d s"):
            hosted(server, limits=Limits(first_wait=10, max_wait=1))(TEXTS[:1])


class TestFailuresThatDoNotPass:
    @pytest.mark.parametrize("code", [401, 402, 403, 404, 409, 501])
    def test_nothing_is_asked_again(self, server, ask, code):
        server.rule = status(code, "not for you")
        with pytest.raises(EmbeddingError, match=f"'openai/small-embedding' failed with HTTP {code}: not for you"):
            ask(hosted(server), TEXTS[:4])
        assert len(server.requests) == 1

    def test_a_rate_limit_that_only_money_ends_is_not_waited_for(self, server, ask):
        error = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
        server.rule = lambda request: Reply(429, json.dumps({"error": error}).encode())
        with pytest.raises(EmbeddingError, match="HTTP 429: You exceeded your current quota"):
            ask(hosted(server), TEXTS[:4])
        assert len(server.requests) == 1

    def test_words_about_rate_limits_do_not_make_one(self, server):
        model = hosted(server)
        model(TEXTS[:1])
        server.rule = poison(TEXTS[1], message="429: text is over the rate limit of letters")
        with pytest.raises(TextsRefusedError, match=r"text 0 \(HTTP 400: 429: text is over the rate limit"):
            model(TEXTS[1:2])
        assert server.asked == [TEXTS[:1], TEXTS[1:2], [PROBE]]

    @pytest.mark.parametrize("code", [401, 403])
    def test_a_refused_key_says_where_keys_come_from(self, server, code):
        server.rule = status(code)
        with pytest.raises(EmbeddingError, match=r"Check api_key, or the provider's environment variable\.$"):
            hosted(server)(TEXTS[:1])


class TestRetryAfter:
    def test_it_is_waited_for(self, server, ask):
        server.next(status(429, retry_after="0.3"), status(503, retry_after_ms="200"))
        assert_vectors_of(ask(hosted(server), TEXTS[:2]), TEXTS[:2])
        first, second, third = (request.at for request in server.requests)
        assert 0.3 <= second - first < 0.6
        assert 0.2 <= third - second < 0.5

    def test_a_date_is_understood(self, server, ask):
        server.rule = status(429, retry_after=email.utils.formatdate(time.time() + 3600, usegmt=True))
        with pytest.raises(
            EmbeddingError, match=r"It asks to wait 3[56]\d\d(\.\d+)? s, and one request may wait 120 s"
        ):
            ask(hosted(server), TEXTS[:2])

    def test_more_than_may_be_waited_fails_at_once(self, server, ask):
        server.rule = status(429, retry_after="300")
        expected = (
            r"after 1 attempt in 0\.\d s: no\. It asks to wait 300 s, and one request may wait 120 s \(max_wait\)"
        )
        with pytest.raises(EmbeddingError, match=expected):
            ask(hosted(server), TEXTS[:2])
        assert len(server.requests) == 1

    @pytest.mark.parametrize("nonsense", ["soon", "-5", "nan", "", "0", "Wed, 21 Oct 2015 07:28:00 GMT"])
    def test_less_than_our_own_wait_does_not_shorten_it(self, server, nonsense):
        server.next(status(429, retry_after=nonsense))
        assert_vectors_of(hosted(server, limits=Limits(first_wait=0.2))(TEXTS[:2]), TEXTS[:2])
        assert np.diff([request.at for request in server.requests]) >= 0.1

    def test_it_holds_back_every_request_of_the_model(self, server):
        model = hosted(server)
        server.next(status(429, retry_after="0.5"))

        async def later():
            await asyncio.sleep(0.15)
            return await awaited(model, TEXTS[2:3])

        threads = [threading.Thread(target=model, args=(TEXTS[:1],))]
        threads.append(threading.Thread(target=lambda: (time.sleep(0.15), model(TEXTS[1:2]))))
        for thread in threads:
            thread.start()
        asyncio.run(later())
        for thread in threads:
            thread.join()
        refused, *rest = server.requests
        assert len(rest) == 3
        assert min(request.at for request in rest) - refused.at >= 0.5

    def test_it_holds_back_those_that_already_wait_for_their_turn(self, server):
        model = hosted(server, limits=Limits(requests_per_minute=600))
        server.next(status(429, retry_after="0.5"))

        async def all_at_once():
            await asyncio.gather(*(awaited(model, [text]) for text in TEXTS[:3]))

        asyncio.run(all_at_once())
        refused, *rest = server.requests
        assert len(rest) == 3
        assert min(request.at for request in rest) - refused.at >= 0.5


class TestBatches:
    @pytest.mark.parametrize("code", [400, 413, 422])
    def test_a_batch_too_large_is_halved_and_the_size_remembered(self, server, ask, code):
        server.rule = too_many_texts(8, code)
        model = hosted(server)
        assert_vectors_of(ask(model, TEXTS[:20]), TEXTS[:20])
        assert [len(texts) for texts in server.asked] == [20, 10, 5, 5, 5, 5]
        assert model.batch_limit == 5
        server.requests.clear()
        assert_vectors_of(ask(model, TEXTS[:12]), TEXTS[:12])
        assert [len(texts) for texts in server.asked] == [5, 5, 2]

    @pytest.mark.parametrize("code", [400, 413, 422])
    @pytest.mark.parametrize("place", [0, 6, 15])
    def test_a_poisonous_text_is_named_and_the_rest_kept(self, server, ask, place, code):
        server.rule = poison(TEXTS[place], code=code)
        expected = (
            rf"'openai/small-embedding' refused 1 of 16 texts: text {place} \(HTTP {code}: input cannot be processed\)"
        )
        model = hosted(server)
        with pytest.raises(TextsRefusedError, match=expected) as caught:
            ask(model, TEXTS[:16])
        rest = [other for other in range(16) if other != place]
        assert sorted(caught.value.vectors) == rest
        assert list(caught.value.refused) == [place]
        assert_vectors_of([caught.value.vectors[other] for other in rest], [TEXTS[other] for other in rest])
        paid = collections.Counter(text for texts in server.asked for text in texts if TEXTS[place] not in texts)
        paid.pop(PROBE, None)
        assert paid == {TEXTS[other]: 1 for other in rest}
        assert len(server.requests) <= 2 * 4 + 2
        assert model.batch_limit is None

    def test_several_poisonous_texts_are_all_named(self, server, ask):
        server.rule = poison(*TEXTS[3:9])
        with pytest.raises(
            TextsRefusedError, match=r"refused 6 of 16 texts: text 3 .*; text 5 .* and 3 more"
        ) as caught:
            ask(hosted(server), TEXTS[:16])
        assert list(caught.value.refused) == [3, 4, 5, 6, 7, 8]
        assert len(caught.value.vectors) == 10

    def test_a_poisonous_text_in_a_batch_too_large_is_named(self, server):
        server.rule = lambda request: (too_many_texts(8)(request)) or poison(TEXTS[5])(request)
        model = hosted(server)
        with pytest.raises(TextsRefusedError, match="refused 1 of 40 texts: text 5 ") as caught:
            model(TEXTS[:40])
        assert len(caught.value.vectors) == 39
        assert model.batch_limit == 5

    def test_a_route_that_refuses_everything_is_not_blamed_on_a_text(self, server, ask):
        server.rule = status(400, "no such model")
        with pytest.raises(EmbeddingError, match="failed with HTTP 400: no such model") as caught:
            ask(hosted(server), TEXTS[:8])
        assert type(caught.value) is EmbeddingError
        assert server.asked == [TEXTS[:8], TEXTS[:4], TEXTS[:2], TEXTS[:1], [PROBE]]

    def test_a_lone_text_is_blamed_once_a_harmless_one_passes(self, server, ask):
        server.rule = poison(TEXTS[0])
        with pytest.raises(TextsRefusedError, match=r"refused 1 of 1 text: text 0 \(HTTP 400") as caught:
            ask(hosted(server), TEXTS[:1])
        assert caught.value.vectors == {}
        assert server.asked == [TEXTS[:1], [PROBE]]

    def test_a_route_that_begins_to_refuse_everything_is_found_out(self, server):
        model = hosted(server)
        model(TEXTS[:4])
        server.rule = status(400, "model was retired")
        server.requests.clear()
        with pytest.raises(EmbeddingError, match="failed with HTTP 400: model was retired") as caught:
            model(TEXTS[:4])
        assert type(caught.value) is EmbeddingError
        assert server.asked == [TEXTS[:4], TEXTS[:2], TEXTS[:1], [PROBE]]

    def test_what_was_embedded_before_a_failure_is_kept(self, server, ask):
        server.next(None, None, status(401))
        with pytest.raises(EmbeddingError, match="failed with HTTP 401") as caught:
            ask(hosted(server, "dashscope/text-embedding-v4"), TEXTS[:25])
        assert_vectors_of([caught.value.vectors[place] for place in range(20)], TEXTS[:20])
        assert len(caught.value.vectors) == 20


class TestPace:
    def test_requests_start_evenly_spaced_and_the_first_at_once(self, server):
        model = hosted(server, limits=Limits(requests_per_minute=600))

        async def all_at_once():
            await asyncio.gather(*(awaited(model, [text]) for text in TEXTS[:3]))

        thread = threading.Thread(target=model, args=(TEXTS[3:4],))
        started = time.monotonic()
        thread.start()
        asyncio.run(all_at_once())
        thread.join()
        times = [request.at for request in server.requests]
        assert times[0] - started < 0.09
        # A busy machine may receive a request late, but none is sent early and no two are sent together.
        assert all(at - started >= 0.1 * number - 0.01 for number, at in enumerate(times))
        assert np.diff(times).min() >= 0.04

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("requests_per_minute", 0),
            ("requests_per_minute", "60"),
            ("timeout", -1),
            ("timeout", float("inf")),
            ("max_concurrency", 0),
            ("max_concurrency", 2.5),
            ("max_attempts", 0),
            ("max_wait", 0),
            ("first_wait", None),
        ],
    )
    def test_a_limit_that_is_none_is_refused(self, name, value):
        with pytest.raises(InputError, match=f"^{name} must be "):
            Limits(**{name: value})


class TestUsage:
    def test_tokens_and_cost_are_summed(self, server, ask):
        model = hosted(server, "openai/text-embedding-3-small")  # 0.02 dollars a million tokens
        ask(model, TEXTS[:40])
        before = model.usage
        ask(model, TEXTS[40:])
        assert before == Usage(requests=1, texts=40, tokens=400, cost=pytest.approx(400 * 2e-8))
        assert model.usage - before == Usage(requests=1, texts=24, tokens=240, cost=pytest.approx(240 * 2e-8))

    @pytest.mark.parametrize("route", ["nebius/Qwen/Qwen3-Embedding-8B", ROUTES[8][0], "mistral/mistral-embed"])
    def test_the_price_is_that_of_the_route_however_it_is_asked(self, server, route):
        model = hosted(server, route)
        model(TEXTS[:10])
        assert model.usage.cost > 0
        assert model.usage.unpriced == 0

    def test_an_unknown_price_is_counted_not_guessed(self, server):
        model = hosted(server, "openai/nobody-knows-this")
        model(TEXTS[:10])
        assert model.usage == Usage(requests=1, texts=10, tokens=100, unpriced=1)
        assert str(model.usage) == "1 request, 10 texts, 100 tokens, price unknown"

    def test_refusals_and_retries_are_counted(self, server):
        server.next(status(500), close_unanswered, status(400), None, None)
        model = hosted(server, limits=Limits(first_wait=0.01))
        model(TEXTS[:2])
        assert (model.usage.requests, model.usage.texts, model.usage.retries) == (4, 2, 2)

    def test_it_reads_well(self):
        assert str(Usage(12, 640, 9120, 0.0009)) == "12 requests, 640 texts, 9,120 tokens, $0.0009"
        assert str(Usage(1, 1, 1, 2e-7, 0, 1)) == "1 request, 1 text, 1 token, less than $0.0001, 1 retry"
        assert str(Usage(3, 9, 90, 1.5, 2, 4)) == (
            "3 requests, 9 texts, 90 tokens, $1.5000, 2 requests of unknown price, 4 retries"
        )
        assert str(Usage()) == "0 requests, 0 texts, 0 tokens, $0"

    def test_nothing_is_lost_between_threads(self, server):
        model = hosted(server)

        def work():
            for text in TEXTS[:10]:
                model([text])

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model.usage == Usage(requests=80, texts=80, tokens=800, unpriced=80)


class TestSecrets:
    @pytest.mark.parametrize("code", [400, 401, 429, 500])
    def test_the_key_is_in_no_message_chain_frame_or_log(self, server, ask, code, caplog, capfd):
        caplog.set_level("DEBUG")
        server.rule = echo_key(code)
        model = hosted(server)
        with pytest.raises(EmbeddingError, match=f"HTTP {code}.*: refused Bearer <key>") as caught:
            ask(model, TEXTS[:2])
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        ours = [line for line in told.format() if "test_hosted.py" not in line]
        assert KEY not in "".join(ours)
        assert KEY not in caplog.text + "".join(capfd.readouterr())
        assert KEY not in repr(model) + repr(vars(model)) + repr(vars(caught.value))

    def test_secrets_of_the_environment_and_logins_are_left_out(self, server, monkeypatch):
        monkeypatch.setenv("SOME_SECRET", "hunter2-hunter2")
        server.rule = status(401, "hunter2-hunter2 at http://user:pass@host/v1?key=abc with bearer abcdef")
        with pytest.raises(EmbeddingError, match=r"<key> at http://<login>@host/v1\?key=<key> with Bearer <key>"):
            hosted(server)(TEXTS[:1])

    def test_a_key_from_the_environment_is_left_out(self, server, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "plain-words-as-key")
        server.rule = status(401, "the key plain-words-as-key is wrong")
        with pytest.raises(EmbeddingError, match="the key <key> is wrong"):
            hosted(server, api_key=None)(TEXTS[:1])

    def test_a_copy_is_the_model_and_a_pickle_has_no_key(self, server):
        model = hosted(server, api_base=server.v1.replace("//", "//user:pass@"))
        assert copy.deepcopy(model) is model
        stored = pickle.dumps(model)
        assert KEY.encode() not in stored
        assert b"user:pass" not in stored
        again = pickle.loads(stored)
        assert (again.name, again.limits) == (model.name, model.limits)
        with pytest.raises(EmbeddingError, match="a missing key"):  # and no made-up one in its place
            again(TEXTS[:1])
        assert server.requests == []

    def test_an_error_can_be_pickled(self, server):
        server.rule = poison(TEXTS[0])
        with pytest.raises(TextsRefusedError, match="refused 1 of 2 texts") as caught:
            hosted(server)(TEXTS[:2])
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.refused) == (str(caught.value), caught.value.refused)
        assert list(again.vectors) == [1]


class TestLoops:
    def test_one_loop_after_another_may_ask(self, server):
        model = hosted(server)
        for text in TEXTS[:5]:
            assert_vectors_of(asyncio.run(awaited(model, [text])), [text])

    @pytest.mark.parametrize("route", ["openai/x", "hosted_vllm/x", "ollama/qwen3-embedding:0.6b"])
    def test_threads_with_loops_of_their_own_share_a_model(self, server, route):
        model = hosted(server, route)
        server.delay = 0.02
        failed = []

        async def ask_much():
            for _ in range(3):
                await asyncio.gather(*(awaited(model, [text]) for text in TEXTS[:3]))

        def work():
            try:
                asyncio.run(ask_much())
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert model.usage.retries == 0

    def test_requests_are_truly_at_the_same_time(self, server):
        server.delay = 0.3
        model = hosted(server)

        async def all_at_once():
            await asyncio.gather(*(awaited(model, [text]) for text in TEXTS[:8]))

        started = time.monotonic()
        asyncio.run(all_at_once())
        assert server.most_at_once == 8
        assert time.monotonic() - started < 4 * 0.3

    def test_waiting_leaves_the_callers_loop_free(self, server):
        server.delay = 0.3
        learner = Qwen3EmbeddingValueLearner("openai/x", api_key=KEY, api_base=server.v1, cache_dir=None)

        async def count_meanwhile():
            task = asyncio.ensure_future(learner.aembed(TEXTS[:1]))
            n_turns = 0
            while not task.done():
                await asyncio.sleep(0.01)
                n_turns += 1
            return n_turns

        assert asyncio.run(count_meanwhile()) > 10

    def test_a_cancelled_caller_leaves_at_once_and_the_next_is_served(self, server):
        learner = Qwen3EmbeddingValueLearner("openai/x", api_key=KEY, api_base=server.v1, cache_dir=None)
        server.next(hang(5))

        async def give_up():
            await asyncio.wait_for(learner.aembed(TEXTS[:1]), 0.2)

        started = time.monotonic()
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(give_up())
        np.testing.assert_allclose(learner.embed(TEXTS[1:2]), vectors(TEXTS[1:2]), atol=1e-6)
        assert time.monotonic() - started < 2

    def test_a_forked_worker_asks_by_itself(self, server):
        model = hosted(server)
        model(TEXTS[:1])
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=lambda: sender.send(model(TEXTS[1:3])))
        worker.start()
        try:
            assert receiver.poll(10)
            assert_vectors_of(receiver.recv(), TEXTS[1:3])
        finally:
            worker.kill()

    def test_nothing_is_printed_that_a_user_would_wonder_about(self, server):
        script = f"""
            import asyncio, threading
            import litellm
            from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits

            def model(api_base):
                return HostedModel("openai/x", api_key="k", api_base=api_base, limits=Limits(max_attempts=1))

            async def ask():
                await asyncio.gather(*(asyncio.to_thread(model({server.v1!r}), [text]) for text in "abc"))

            async def ask_beside_litellm():
                for _ in range(5):
                    await litellm.aembedding(model="openai/x", input=["a"], api_base={server.v1!r}, api_key="k")
                    await ask()
                await asyncio.sleep(0.1)

            asyncio.run(ask_beside_litellm())
            asyncio.run(ask())
            threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(3)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            model({server.v1!r})(["d"])
            try:
                model("http://127.0.0.1:{closed_port()}")(["e"])
            except RuntimeError as error:
                print(error)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stderr == ""
        assert re.fullmatch(r"the route 'openai/x' failed with a connection error .*\n", done.stdout)


class TestInsideDspy:
    def test_who_listens_to_litellm_hears_of_embeddings(self, server, monkeypatch):
        import litellm
        from litellm.integrations.custom_logger import CustomLogger

        heard = threading.Event()

        class Listener(CustomLogger):
            async def async_log_success_event(self, *event, **more):
                heard.set()

        for name in ("callbacks", "success_callback", "_async_success_callback", "failure_callback"):
            monkeypatch.setattr(litellm, name, [])
        monkeypatch.setattr(litellm, "callbacks", [Listener()])
        hosted(server)(TEXTS[:1])
        assert heard.wait(5)

    def test_the_embedder_hands_texts_and_errors_through(self, server):
        embedder = dspy.Embedder(hosted(server), caching=False, batch_size=8)
        assert_vectors_of(list(embedder(TEXTS[:20])), TEXTS[:20])
        server.rule = poison(TEXTS[2])
        with pytest.raises(TextsRefusedError, match="refused 1 of 4 texts: text 2 ") as caught:
            embedder(TEXTS[:4])
        assert sorted(caught.value.vectors) == [0, 1, 3]
