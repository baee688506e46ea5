"""Arguments of a provider's own: they reach it, they keep vectors apart, and their secrets stay where they are."""

import asyncio
import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import dspy
import numpy as np
import pytest

from dspy_qvl import EmbeddingError, InputError, Qwen3EmbeddingValueLearner, StateError
from dspy_qvl.embedding.models.hosted.arguments import canonical, public, secret_strings, secrets
from dspy_qvl.embedding.models.hosted.hosted import HostedModel
from dspy_qvl.embedding.models.spec import ModelSpec
from tests.conftest import CountingModel, rated
from tests.loopback import Loopback, answer, status, vectors

TEXTS = [text for text, _ in rated(10)]
SECRETS = ("sk-nested-4711", "s3cret-of-a-body", "hunter2-hunter2", "Zx81Zx81Zx81Zx81Zx81Zx81", "of-a-list-0815")
NESTED = {
    "extra_headers": {"Authorization": f"Bearer {SECRETS[0]}", "X-Gateway": SECRETS[3], "X-Version": "2"},
    "extra_body": {"auth": {"password": SECRETS[2]}, "truncate": "END", "deep": [{"api_key": SECRETS[1], "n": 1}]},
    "extra_query": {"api-version": "2024-02-01", "token": SECRETS[1], "pairs": [["X-Api-Key", SECRETS[4]]]},
}
OPTIONS = {name: value for name, value in NESTED.items() if name != "extra_query"}
HARMLESS = {
    "extra_headers": {"X-Version": "2"},
    "extra_body": {"truncate": "END", "deep": [{"n": 1}]},
    "extra_query": {"api-version": "2024-02-01"},
}


def by_input_type(request):
    """Other vectors for queries than for passages."""

    def change(rows):
        for row in rows:
            row["embedding"] = row["embedding"][::-1]

    return answer(request, change) if request.body.get("input_type") == "query" else None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with Loopback() as server:
        server.rule = by_input_type
        yield server


def hosted(server, tmp_path, options, route="openai/an-embedding", **settings):
    return Qwen3EmbeddingValueLearner(
        route,
        api_base=server.v1,
        api_key="sk-right",
        cache_dir=tmp_path / "cache",
        features=None,
        provider_options=options,
        **settings,
    )


def own(embedder, tmp_path):
    return Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=tmp_path / "cache", features=None)


def route(server, **arguments):
    arguments = {"api_key": "sk-right", **arguments}
    return dspy.Embedder("openai/an-embedding", api_base=server.v1, caching=False, **arguments)


# What is secret


def test_secrets_are_found_at_any_depth_and_the_rest_stays():
    assert public(NESTED) == HARMLESS
    assert set(secrets(NESTED)) == {
        "extra_headers.Authorization",
        "extra_headers.X-Gateway",
        "extra_body.auth",
        "extra_body.deep.0.api_key",
        "extra_query.token",
        "extra_query.pairs.X-Api-Key",
    }
    assert set(SECRETS) <= set(secret_strings(NESTED))
    assert json.loads(canonical(NESTED)) == HARMLESS


@pytest.mark.parametrize(
    "secret",
    [
        {"api_key": "x"},
        {"aws_secret_access_key": "x"},
        {"azure_ad_token": "x"},
        {"vertex_credentials": '{"private": 1}'},
        {"extra_headers": {"Cookie": "a=b"}},
        {"extra_headers": [("Authorization", "Basic dTpw")]},
        {"extra_headers": {"X-Custom": "Basic dXNlcjpwYXNz"}},
        {"extra_headers": {"X-Custom": "3f2b8a10-9c1d-4e5f-8a7b-0123456789ab"}},
        {"extra_body": {"headers": [{"name": "Authorization", "value": "x"}]}},
        {"anything": "sk-12345678"},
        {"anything": ["Bearer abc"]},
    ],
)
def test_what_looks_like_a_secret_leaves_no_trace(secret):
    assert public(secret) == {}
    assert canonical({"input_type": "query", **secret}) == canonical({"input_type": "query"})


@pytest.mark.parametrize(
    "harmless",
    [
        {"input_type": "query"},
        {"extra_body": {"truncate_prompt_tokens": 256, "tokenizer": "x", "author": "y"}},
        {"extra_headers": {"X-Model": "qwen3-embedding-0.6b-int8", "X-Title": "my app"}},
        {"revision": "5617a9f61b028005a4858fdac845db406aefb181"},
        {"use_auth_token": True, "region": "asia-southeast1"},
        {"style": "basic english prose"},
    ],
)
def test_what_is_no_secret_counts(harmless):
    assert public(harmless) == harmless
    assert json.loads(canonical(harmless)) == harmless


def test_the_canonical_form_is_that_of_the_content():
    one = {"b": [1, 2.5, None], "a": {"y": np.float32(0.5), "x": ("p", "q")}}
    other = {"a": {"x": ["p", "q"], "y": 0.5}, "b": (1, 2.5, None), "timeout": 3, "num_retries": 2}
    assert canonical(one) == canonical(other) == '{"a":{"x":["p","q"],"y":0.5},"b":[1,2.5,null]}'
    assert canonical({"pooling": np.mean}) != canonical({"pooling": np.max})
    assert canonical({"weights": np.arange(3)}) != canonical({"weights": np.arange(1, 4)})
    assert canonical({"client": object(), "user": "me", "extra_body": {}}) == ""
    assert canonical({"at": "https://me:pw@host/v1?key=1"}) == '{"at":"https://host/v1"}'
    assert len(canonical({"extra_body": {"prompt": "long " * 10_000}})) < 100


# Embedders of the caller's own


def test_two_embedders_of_one_route_that_differ_in_an_argument_never_share_a_vector(server, tmp_path):
    passages = own(route(server, input_type="passage"), tmp_path).embed(TEXTS)
    queries = own(route(server, input_type="query"), tmp_path).embed(TEXTS)
    np.testing.assert_allclose(passages, vectors(TEXTS), atol=1e-6)
    np.testing.assert_allclose(queries, vectors(TEXTS)[:, ::-1], atol=1e-6)
    server.requests.clear()
    again = own(route(server, input_type="query", timeout=7, api_key="sk-another"), tmp_path)
    np.testing.assert_array_equal(again.embed(TEXTS), queries)
    assert not server.requests


def test_a_callable_that_is_given_other_arguments_is_another_model(tmp_path):
    class Scaled(CountingModel):
        def __call__(self, texts, power=1.0):
            return super().__call__(texts) ** power

    one, other = (own(dspy.Embedder(Scaled("scaled"), power=power), tmp_path).embed(TEXTS) for power in (1.0, 2.0))
    assert not np.allclose(one, other)


def test_a_given_name_replaces_the_route_and_arguments_still_count(server, tmp_path):
    def named(name, **arguments):
        embedder = route(server, **arguments)
        embedder.name = name
        return own(embedder, tmp_path)

    one, other, third = named("one"), named("other"), named("one", input_type="query")
    assert (one.model_name, other.model_name) == ("one", "other")
    assert len({learner.embedding_cache.key("a text") for learner in (one, other, third)}) == 3
    assert "'one'" in one.embedder.name


@pytest.mark.parametrize("arguments", [{}, {"api_key": "sk-x"}, {"timeout": 3, "num_retries": 1}])
def test_the_identity_of_an_embedder_without_arguments_is_as_it_was(arguments):
    embedder = dspy.Embedder("openai/an-embedding", **arguments)
    assert ModelSpec("", embedder=embedder).model().identity == {
        "model": "openai/an-embedding",
        "backend": "embedder",
    }
    model = dspy.Embedder(CountingModel("mine"))
    assert ModelSpec("", embedder=model).model().identity == {"model": "mine", "backend": "embedder"}


def test_a_file_that_knew_no_arguments_still_serves_where_the_vectors_are_the_same(tmp_path):
    class Turned(CountingModel):
        def __call__(self, texts, turned=False):
            rows = super().__call__(texts)
            return rows[:, ::-1] if turned else rows

    learner = own(dspy.Embedder(Turned("mine"), turned=True), tmp_path)
    learner.add_training_examples(rated(20))
    learner.train()
    state = json.loads(json.dumps(learner.ridge.dump_state()))
    state["fit"] = json.loads(state["fit"])
    assert state["fit"]["identity"].pop("arguments") == '{"turned":true}'  # as version 0.1.0 wrote it
    again = own(dspy.Embedder(Turned("mine"), turned=True), tmp_path / "new")
    again.ridge.load_state(state)
    assert again.predict("a sturdy cup") == learner.predict("a sturdy cup")
    awaited = own(dspy.Embedder(Turned("mine"), turned=True), tmp_path / "newer")
    awaited.ridge.load_state(state)
    assert asyncio.run(awaited.acall(text="a sturdy cup")).score == learner.predict("a sturdy cup")
    other = own(dspy.Embedder(Turned("mine"), turned=False), tmp_path / "newest")
    other.ridge.load_state(state)
    with pytest.raises(StateError, match="another embedding model"):
        other.predict("a sturdy cup")


def test_a_fit_of_other_arguments_is_refused_by_name(server, tmp_path):
    learner = own(route(server, input_type="query"), tmp_path)
    learner.add_training_examples(rated(10))
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    again = own(route(server, input_type="query"), tmp_path)
    again.load_model(tmp_path / "value.qvl")
    assert again.predict("a sturdy cup") == learner.predict("a sturdy cup")
    with pytest.raises(StateError, match=r'arguments: \'\{"input_type":"query"\}\' saved, \'\' here'):
        own(route(server), tmp_path).load_model(tmp_path / "value.qvl")


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_nested_secrets_of_an_embedder_are_in_no_pickle_no_file_and_no_repr(server, tmp_path, dumps):
    learner = own(route(server, **NESTED), tmp_path)
    learner.add_training_examples(rated(10))
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    raw = dumps(learner)
    again = pickle.loads(raw)
    assert again._embedding.spec.embedder.default_kwargs == {"api_base": server.v1, **HARMLESS}
    assert again.identity == learner.identity
    shown = repr(learner) + repr(vars(learner)) + repr(learner._embedding.spec) + repr(learner.embedder.name)
    for secret in ("sk-right", *SECRETS):
        assert secret.encode() not in raw
        assert secret not in shown + json.dumps(learner.identity)
        assert all(secret.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_what_a_server_repeats_of_the_secrets_of_an_embedder_is_not_passed_on(server, tmp_path):
    server.rule = lambda request: status(400, f"{request.headers} {request.body}")(request)
    with pytest.raises(EmbeddingError, match="the embedder 'openai/an-embedding' failed: BadRequestError") as info:
        own(route(server, **NESTED), tmp_path).embed(TEXTS)
    message, cause = str(info.value), info.value.__cause__
    for secret in ("sk-right", *SECRETS):
        assert secret not in message
        assert secret not in str(cause)


def test_a_subclass_of_an_embedder_stays_what_it_is_in_a_pickle():
    embedder = Turning("openai/m", api_key="sk-x", base="a", client=threading.Lock())  # a client cannot be pickled
    again = pickle.loads(pickle.dumps(ModelSpec("", embedder=embedder)))
    assert type(again.embedder) is Turning
    assert vars(again.embedder)["default_kwargs"] == {"base": "a"}
    assert not hasattr(again.embedder, "session_token")
    assert again.embedder.asked == []
    assert again.embedder.name == "turning"


class Turning(dspy.Embedder):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.name, self.session_token, self.asked = "turning", "sk-of-a-session", []


# Routes of the learner's own


PROVIDERS = ["openai", "hosted_vllm", "nvidia_nim", "together_ai", "openrouter", "fireworks_ai", "dashscope"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_options_are_sent_with_each_request(server, tmp_path, provider):
    options = {
        "input_type": "query",
        "extra_body": {"truncate": "END"},
        "extra_headers": {"X-Version": "2", "X-Api-Token": "sk-of-a-gateway"},
    }
    learner = hosted(server, tmp_path, options, f"{provider}/an/embedding", batch_size=4)
    np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS)[:, ::-1], atol=1e-6)
    assert len(server.requests) >= 3
    for request in server.requests:
        assert (request.body["input_type"], request.body["truncate"]) == ("query", "END")
        assert (request.headers["x-version"], request.headers["x-api-token"]) == ("2", "sk-of-a-gateway")
    assert options["extra_body"] == {"truncate": "END"}


def test_options_are_part_of_the_identity_but_for_their_secrets(server, tmp_path):
    plain, same, other = (
        hosted(server, tmp_path, options)
        for options in (
            {"input_type": "query", "extra_headers": {"Authorization": "Bearer sk-of-a-gateway"}},
            {"input_type": "query"},
            None,
        )
    )
    assert plain.identity == same.identity == {**other.identity, "arguments": '{"input_type":"query"}'}
    assert "arguments" not in other.identity
    assert plain.embedding_cache.key("a") == same.embedding_cache.key("a") != other.embedding_cache.key("a")
    # But nobody's text is sent with another's headers.
    assert plain._embedding._sources.current()._coalescer is not same._embedding._sources.current()._coalescer


def test_a_fit_remembers_its_options(server, tmp_path):
    learner = hosted(server, tmp_path, {"input_type": "query"})
    learner.add_training_examples(rated(10))
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    again = hosted(server, tmp_path, {"input_type": "query"})
    again.load_model(tmp_path / "value.qvl")
    assert again.predict("a sturdy cup") == learner.predict("a sturdy cup")
    with pytest.raises(StateError, match=r"arguments: .* saved, '' here"):
        hosted(server, tmp_path, None).load_model(tmp_path / "value.qvl")


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_secret_options_do_not_travel_and_are_missed_before_anything_is_sent(server, tmp_path, dumps):
    learner = hosted(server, tmp_path, OPTIONS)
    learner.add_training_examples(rated(10))
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    raw = dumps(learner)
    again, twin = pickle.loads(raw), copy.deepcopy(learner)
    shown = repr(learner) + repr(vars(learner)) + repr(learner._embedding.spec)
    for secret in ("sk-right", *SECRETS):
        assert secret.encode() not in raw
        assert secret not in shown
        assert all(secret.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert again.identity == learner.identity
    assert again.predict(TEXTS[0]) == learner.predict(TEXTS[0])  # known
    server.requests.clear()
    with pytest.raises(
        EmbeddingError, match=r"secrets in provider_options \(.*extra_headers.Authorization.*do not trav"
    ):
        again.predict("a new text")
    assert server.requests == []
    twin.predict("a new text")
    assert server.requests[-1].headers["authorization"] == f"Bearer {SECRETS[0]}"
    thrice = pickle.loads(pickle.dumps(again))
    with pytest.raises(EmbeddingError, match="do not travel"):
        thrice.predict("another text")


def test_what_a_server_repeats_of_secret_options_is_not_passed_on(server, tmp_path, caplog):
    server.rule = lambda request: status(401, f"{request.headers} {request.body}")(request)
    with pytest.raises(EmbeddingError, match="failed with HTTP 401") as info:
        hosted(server, tmp_path, OPTIONS).embed(TEXTS)
    for secret in ("sk-right", *SECRETS):
        assert secret not in str(info.value)
        assert secret not in caplog.text
    model = HostedModel("openai/an-embedding", options=NESTED)
    assert pickle.loads(pickle.dumps(model))._options() == HARMLESS
    assert not any(secret in repr(model) + repr(vars(model)) for secret in SECRETS)


def test_a_size_that_a_provider_is_asked_for_is_the_size_of_a_full_vector():
    spec = ModelSpec("openrouter/qwen/qwen3-embedding-8b", options={"dimensions": 512})
    assert spec.model().size == 512
    assert Qwen3EmbeddingValueLearner(spec.model_name, provider_options={"dimensions": 512}).embedding_dim == 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["input_type"], "provider_options must be a dict or None, but got list"),
        ({"input_type": object()}, "provider_options must hold only what JSON can"),
        ({1: "a"}, "provider_options must hold only what JSON can"),
        ({"api_key": "sk-secret"}, "must not hold 'api_key'; the learner says it by api_key"),
        ({"base_url": "http://x"}, "must not hold 'base_url'; the learner says it by api_base"),
        ({"timeout": 3}, "must not hold 'timeout'; the learner says it by timeout"),
    ],
)
def test_options_that_cannot_be_used_are_refused_and_not_shown(options, message):
    with pytest.raises(InputError, match=message) as info:
        Qwen3EmbeddingValueLearner("openai/an-embedding", provider_options=options)
    assert "sk-secret" not in str(info.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lexical", "but this is the lexical model; leave them out"),
        ("Qwen/Qwen3-Embedding-0.6B", "but this is a model in process; leave them out"),
        (None, "but this is an embedder of one's own; give them to dspy.Embedder"),
    ],
)
def test_options_are_refused_where_nothing_is_sent_to_a_provider(model, message):
    embedder = CountingModel() if model is None else None
    with pytest.raises(InputError, match=message):
        Qwen3EmbeddingValueLearner(model, embedder=embedder, provider_options={"input_type": "sk-secret-secret"})


def test_many_threads_with_two_kinds_of_options_get_their_own_vectors(server, tmp_path):
    learners = [hosted(server, tmp_path, {"input_type": kind}) for kind in ("query", "passage")]
    expected = (vectors(TEXTS)[:, ::-1], vectors(TEXTS))

    def one(number):
        kind, row = number % 2, number // 2 % len(TEXTS)
        np.testing.assert_allclose(learners[kind].embed([TEXTS[row]])[0], expected[kind][row], atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(60)))


def test_a_query_of_the_address_is_refused_since_it_would_not_arrive_there():
    with pytest.raises(InputError, match="must not hold 'extra_query': litellm would send it in the body"):
        Qwen3EmbeddingValueLearner("openai/m", provider_options={"extra_query": {"version": "2"}})
