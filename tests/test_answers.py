"""What becomes of answers that are made of anything: vectors that were paid for, or an error of this package."""

import json
import random

import dspy
import numpy as np
import pytest

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner
from dspy_qvl.embedding.loops import on_our_loop
from dspy_qvl.embedding.models.hosted.failures import Failure
from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits
from dspy_qvl.embedding.models.hosted.request import ask
from dspy_qvl.errors import QVLError
from tests.loopback import Loopback, Reply, answer, shuffled, vectors

TEXTS = ["good", "bad", "so so", "best"]
ENDS = {"ollama": "", "gemini": "", "cohere": "/v1/embed", "voyage": "/v1/embeddings"}
ROUTES = [
    "openai/m",
    "openrouter/qwen/qwen3-embedding-8b",
    "dashscope/text-embedding-v4",
    "hosted_vllm/m",
    "nebius/m",
    "together_ai/m",
    "fireworks_ai/m",
    "mistral/mistral-embed",
    "litellm_proxy/m",
    "voyage/m",
    "jina_ai/m",
    "openai_like/m",
]


class Raw(str):
    """JSON as it is written."""


def written(value) -> str:
    """JSON of a value, with raw pieces in it."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


INFINITE, HUGE, DEEP = Raw("1e999"), Raw("1" + "0" * 400), Raw("[" * 200_000 + "]" * 200_000)
ODD = [None, True, "12", "x", 1.5, -5, [], {}, [1], {"a": 1}, INFINITE, Raw("-1e999"), Raw("NaN"), HUGE, 10**30]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with Loopback() as server:
        yield server


def hosted(server, route="openai/m"):
    end = ENDS.get(route.split("/")[0], "/v1")
    limits = Limits(max_attempts=1, first_wait=0.01)
    return HostedModel(route, api_key="sk-secret-123456", api_base=server.root + end, limits=limits)


def asked(server, route="openai/m"):
    """What one request gives."""
    model = hosted(server, route)
    return on_our_loop(ask(route, TEXTS, key="sk-secret-123456", api_base=model._api_base, timeout=30)).result()


def own(server, route="openai/m"):
    embedder = dspy.Embedder(route, api_key="sk-secret-123456", api_base=server.root + "/v1")
    return Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=None, features=None)


def numbered(indexes):
    """An answer whose rows say that they are these; `...` for a row that says nothing."""

    def rule(request):
        def change(rows):
            for row, index in zip(rows, indexes, strict=False):
                row["index"] = index
                if index is ...:
                    del row["index"]

        body = json.loads(answer(request, lambda rows: None).body)
        change(body["data"])
        return Reply(body=written(body).encode())

    return rule


NO_NUMBERING = [
    [3, 2, 1, 1],
    [0, 0, 0, 1],
    [1, 2, 3, 4],
    [0, 1, 2, 4],
    [-1, 0, 1, 2],
    [1, 1, 1, 1],
    [0, 1, 2, ...],
    [0, 1, 2, None],
    [0, 1, 2, INFINITE],
    [0, 1, 2, HUGE],
    [0, 1, 2, [3]],
    [0, 1, 2, "third"],
    [0, 1, 2, 3.5],
]
NO_NUMBERS = [[3.0, 2.0, 1.0, 0.0], ["3", "2", "1", "0"], [True, False, 2, 3], [0.0] * 4, [False] * 4]


# OpenAI's client warns of numbers it did not expect.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer")


class TestOrder:
    @pytest.mark.parametrize("indexes", [*NO_NUMBERING, *NO_NUMBERS], ids=str)
    @pytest.mark.parametrize("make", [hosted, own])
    def test_rows_that_are_not_numbered_once_each_are_refused(self, server, indexes, make):
        server.rule = numbered(indexes)
        if make is hosted:
            outcome = asked(server)
            assert isinstance(outcome, Failure)
            assert outcome.what == "an answer that cannot be read"
        else:
            with pytest.raises(EmbeddingError, match=r"an answer that cannot be read: its rows are numbered"):
                own(server).embed(TEXTS)

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("indexes", [[3, 2, 1, 1], [0, 1, 2, 4], [0, 1, 2, INFINITE]], ids=str)
    def test_they_are_refused_on_every_route(self, server, route, indexes):
        server.rule = numbered(indexes)
        outcome = asked(server, route)
        assert isinstance(outcome, Failure)
        assert outcome.what == "an answer that cannot be read"

    def test_another_try_is_worth_it_and_no_wrong_vector_is_stored(self, server, tmp_path):
        server.next(numbered([3, 2, 1, 1, 0]))
        learner = Qwen3EmbeddingValueLearner(
            "openai/m", api_key="k", api_base=server.v1, cache_dir=tmp_path, features=None
        )
        np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS), atol=1e-6)

    @pytest.mark.parametrize("indexes", [[0, 0, 0, 0], [...] * 4, [None] * 4, [0, 1, 2, 3]], ids=str)
    @pytest.mark.parametrize("make", [hosted, own])
    def test_rows_without_numbers_are_taken_as_they_come(self, server, indexes, make):
        server.rule = numbered(indexes)
        given = np.stack(hosted(server)(TEXTS)) if make is hosted else own(server).embed(TEXTS)
        np.testing.assert_allclose(given, vectors(TEXTS), atol=1e-6)

    def test_an_embedder_of_the_callers_is_given_its_vectors_in_order(self, server):
        server.rule = shuffled
        np.testing.assert_allclose(own(server).embed(TEXTS), vectors(TEXTS), atol=1e-6)


def with_usage(usage):
    def rule(request):
        body = json.loads(answer(request).body)
        body["usage"] = usage
        if usage is ...:
            del body["usage"]
        return Reply(body=written(body).encode())

    return rule


class TestUsage:
    @pytest.mark.parametrize("route", ROUTES)
    def test_usage_of_any_kind_loses_no_vector(self, server, route):
        model = hosted(server, route)
        lost = []
        usages = [..., *ODD, *({"total_tokens": odd, "prompt_tokens": odd} for odd in ODD)]
        for usage in usages:
            server.rule = with_usage(usage)
            try:
                np.testing.assert_array_equal(np.stack(model(TEXTS)), vectors(TEXTS))
            except QVLError as error:
                lost.append((str(usage)[:60], str(error)))
        assert lost == []
        assert model.usage.requests == len(usages)
        assert 0 <= model.usage.tokens < 1000


def mutated(value, chance: random.Random, odd):
    """JSON with one piece of it replaced, left out or repeated, at whatever depth."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: mutated(value[key], chance, odd)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        if chance.random() < 0.2:
            return value[:place] + value[place + 1 :]
        if chance.random() < 0.2:
            return [*value, value[place]]
        return [*value[:place], mutated(value[place], chance, odd), *value[place + 1 :]]
    return chance.choice(odd)


class TestAnythingAtAll:
    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m", "dashscope/text-embedding-v4", "ollama/m"])
    def test_an_answer_of_any_shape_gives_right_vectors_or_an_error_of_ours(self, server, route):
        model = hosted(server, route)
        chance = random.Random(route)
        outcomes = {"right": 0, "refused": 0}
        for number in range(80):
            code = chance.choice([200, 200, 200, 201, 400, 429, 500])

            def rule(request, code=code):
                if request.texts != TEXTS:
                    return Reply(401, b"{}")  # no second chance
                body = json.loads(answer(request).body)
                return Reply(code, written(mutated(mutated(body, chance, ODD), chance, ODD)).encode())

            server.rule = rule
            try:
                given = model(TEXTS)
            except QVLError as error:
                outcomes["refused"] += 1
                for place, vector in getattr(error, "vectors", {}).items():
                    assert vector.shape == vectors(TEXTS)[place].shape, number
            else:
                outcomes["right"] += 1
                assert len(given) == len(TEXTS)
                assert all(np.isfinite(vector).all() and vector.any() for vector in given)
        assert min(outcomes.values()) > 5, outcomes

    @pytest.mark.parametrize("make", [hosted, own])
    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m"])
    @pytest.mark.parametrize("code", [200, 400])
    @pytest.mark.parametrize(
        "body",
        [
            DEEP,
            f'{{"error": {DEEP}}}',
            f'{{"error": {{"message": {DEEP}}}}}',
            f'{{"data": {DEEP}}}',
            f'{{"data": [{{"index": 0, "embedding": {DEEP}}}]}}',
            HUGE,
            "null",
            "[]",
            '"text"',
            "",
            "\x00\ud800",
            '{"data": null, "error": null}',
        ],
        ids=range(12),
    )
    def test_a_body_of_any_kind_is_an_error_of_ours(self, server, make, route, code, body):
        server.rule = lambda request: Reply(code, body.encode("utf-8", "surrogatepass"))
        ask_for = hosted(server, route) if make is hosted else own(server, route).embed
        with pytest.raises(EmbeddingError, match=r"failed with|failed: "):
            ask_for(TEXTS)

    @pytest.mark.parametrize("usage", [INFINITE, {"total_tokens": INFINITE}, {"total_tokens": HUGE}, "much", [1]])
    def test_an_embedder_of_the_callers_loses_no_vector_to_its_usage(self, server, usage):
        server.rule = with_usage(usage)
        np.testing.assert_allclose(own(server).embed(TEXTS), vectors(TEXTS), atol=1e-6)
