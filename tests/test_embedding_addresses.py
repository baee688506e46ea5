"""Where a hosted model is asked: vectors are those of the server that would be asked now, whoever named it."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import textwrap

import dspy
import numpy as np
import pytest

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner
from dspy_qvl.embedding.cache.cache import EmbeddingCache
from dspy_qvl.embedding.models.hosted.addresses import address_of, public_address
from dspy_qvl.embedding.models.hosted.providers import PROVIDERS
from dspy_qvl.embedding.models.hosted.request import Answer, ask
from dspy_qvl.embedding.probe import PROBE_TEXTS
from tests.conftest import rated
from tests.loopback import Loopback, echo_key, other_model, vectors

TEXTS = [text for text, _ in rated(12)]
ROUTE = "hosted_vllm/Qwen/Some-Embedding"
LOOKED_UP = {name: provider.addresses for name, provider in PROVIDERS.items() if provider.addresses}

# provider, its variable, and the end of an address of this provider
VARIABLES = [
    ("dashscope", "DASHSCOPE_API_BASE", "/v1"),
    ("fireworks_ai", "FIREWORKS_API_BASE", "/v1"),
    ("hosted_vllm", "HOSTED_VLLM_API_BASE", "/v1"),
    ("jina_ai", "JINA_AI_API_BASE", "/v1"),
    ("litellm_proxy", "LITELLM_PROXY_API_BASE", ""),
    ("lm_studio", "LM_STUDIO_API_BASE", "/v1"),
    ("mistral", "MISTRAL_AZURE_API_BASE", "/v1"),
    ("nebius", "NEBIUS_API_BASE", "/v1"),
    ("nvidia_nim", "NVIDIA_NIM_API_BASE", "/v1"),
    ("ollama", "OLLAMA_API_BASE", ""),
    ("openai", "OPENAI_API_BASE", "/v1"),
    ("openai", "OPENAI_BASE_URL", "/v1"),
    ("openai_like", "OPENAI_LIKE_API_BASE", "/v1"),
    ("openrouter", "OPENROUTER_API_BASE", "/v1"),
    ("sambanova", "SAMBANOVA_API_BASE", "/v1"),
    ("together_ai", "TOGETHER_AI_API_BASE", "/v1"),
    ("xinference", "XINFERENCE_API_BASE", "/v1"),
]


@pytest.fixture(autouse=True)
def _no_address(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # importing litellm offline would retry a download
    for name in {name for names in LOOKED_UP.values() for name in names} | {"USE_LITELLM_PROXY"}:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def servers():
    """Two servers that call different models by one name."""
    with Loopback() as one, Loopback() as other:
        other.rule = other_model
        yield one, other


def make(tmp_path, route=ROUTE, **settings):
    settings = {"cache_dir": tmp_path / "cache", "features": None, **settings}
    return Qwen3EmbeddingValueLearner(route, **settings)


@pytest.mark.parametrize(("provider", "variable", "end"), VARIABLES)
def test_the_address_is_the_one_that_litellm_asks(monkeypatch, provider, variable, end):
    with Loopback() as server:
        monkeypatch.setenv(variable, server.root + end)
        answer = asyncio.run(ask(f"{provider}/an/embedding", ["a"], key="sk-right", api_base=None, timeout=10))
        assert isinstance(answer, Answer), answer
        assert server.requests
        assert address_of(f"{provider}/an/embedding") == server.root + end


@pytest.mark.parametrize("provider", sorted(LOOKED_UP))
def test_litellm_names_no_other_address_than_the_one_looked_up(monkeypatch, provider):
    import litellm

    monkeypatch.setattr(litellm, "api_base", None)
    route = f"{provider}/an-embedding"
    own = litellm.get_llm_provider(route, api_key="sk-right")[3]
    for variable in (name for name in LOOKED_UP[provider] if name.isupper()):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "http://127.0.0.1:1/v1")
            told = litellm.get_llm_provider(route, api_key="sk-right")[3]
            assert told in (own, address_of(route))  # some providers look only when they are asked
            assert address_of(route, "http://127.0.0.1:2/v1") == "http://127.0.0.1:2/v1"


def test_litellms_own_setting_counts_where_litellm_reads_it(monkeypatch, servers, tmp_path):
    import litellm

    one, other = servers
    monkeypatch.setattr(litellm, "api_base", one.v1)
    monkeypatch.setenv("OPENAI_API_BASE", other.v1)
    learner = make(tmp_path, "openai/an-embedding", api_key="sk-right")
    np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS), atol=1e-6)
    monkeypatch.setattr(litellm, "api_base", None)
    np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS)[:, ::-1], atol=1e-6)


def test_everything_through_a_proxy_is_asked_there(monkeypatch):
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("USE_LITELLM_PROXY", "True")
    monkeypatch.setenv("LITELLM_PROXY_API_BASE", "http://127.0.0.1:2")
    assert address_of(ROUTE) == "http://127.0.0.1:2"


@pytest.mark.parametrize("kind", ["another learner", "the same learner", "awaited", "a dspy.Embedder"])
def test_two_servers_behind_one_variable_never_share_a_vector(monkeypatch, servers, tmp_path, kind):
    one, other = servers

    def made():
        if kind == "a dspy.Embedder":
            embedder = dspy.Embedder(ROUTE, api_key="sk-right", caching=False)
            return Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=tmp_path / "cache", features=None)
        return make(tmp_path)

    def embed(learner):
        return asyncio.run(learner.aembed(TEXTS)) if kind == "awaited" else learner.embed(TEXTS)

    monkeypatch.setenv("HOSTED_VLLM_API_BASE", one.v1)
    learner = made()
    np.testing.assert_allclose(embed(learner), vectors(TEXTS), atol=1e-6)
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", other.v1)
    learner = learner if kind in ("the same learner", "awaited") else made()
    np.testing.assert_allclose(embed(learner), vectors(TEXTS)[:, ::-1], atol=1e-6)
    for server in servers:
        server.requests.clear()
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", one.v1)
    np.testing.assert_allclose(embed(learner), vectors(TEXTS), atol=1e-6)
    assert not one.requests
    assert not other.requests


def test_the_address_of_construction_is_not_asked_when_another_is_named_by_then(monkeypatch, servers, tmp_path):
    one, other = servers
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", other.v1)
    learner = make(tmp_path)
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", one.v1)
    np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS), atol=1e-6)
    assert not other.requests
    assert learner.embedder.usage.texts == len(TEXTS) + 1  # and a probe


def test_a_copy_and_a_pickled_learner_ask_where_their_process_says(monkeypatch, servers, tmp_path):
    one, other = servers
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", one.v1)
    learner = make(tmp_path)
    learner.embed(TEXTS)
    raw, twin = pickle.dumps(learner), copy.deepcopy(learner)
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", other.v1)
    for copied in (pickle.loads(raw), twin):
        np.testing.assert_allclose(copied.embed(TEXTS), vectors(TEXTS)[:, ::-1], atol=1e-6)
    assert one.root.encode() not in raw


def test_learners_at_one_address_share_batches_and_at_two_they_do_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://127.0.0.1:1/v1")
    first, second = (make(tmp_path)._embedding._sources.current()._coalescer for _ in range(2))
    assert first is second
    learner = make(tmp_path)
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://127.0.0.1:2/v1")
    assert learner._embedding._sources.current()._coalescer is not first


def test_base_url_is_asked_though_litellm_ignores_it(servers, tmp_path):
    one, _ = servers
    embedder = dspy.Embedder("openai/an-embedding", api_key="sk-right", base_url=one.v1)
    learner = Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=tmp_path, features=None)
    np.testing.assert_allclose(learner.embed(TEXTS), vectors(TEXTS), atol=1e-6)


def key_of(identity, text="a text"):
    return EmbeddingCache(json.dumps(identity, sort_keys=True), None).key(text)


def test_keys_are_as_they_were_where_no_variable_names_an_address(tmp_path):
    hosted = {"model": ROUTE, "backend": "litellm"}
    own = {"model": "openai/an-embedding", "backend": "embedder"}
    for learner, identity in [
        (make(tmp_path), {**hosted, "endpoint": ""}),
        (make(tmp_path, api_base="http://127.0.0.1:1/v1/"), {**hosted, "endpoint": "http://127.0.0.1:1/v1"}),
        (make(tmp_path, None, embedder=dspy.Embedder("openai/an-embedding", api_key="sk")), {**own, "endpoint": ""}),
        (
            make(tmp_path, None, embedder=dspy.Embedder("openai/an-embedding", api_base="http://127.0.0.1:1/v1")),
            {**own, "endpoint": "http://127.0.0.1:1/v1"},
        ),
    ]:
        assert learner.embedding_cache.key("a text") == key_of(identity)
        assert "endpoint" not in learner.identity


def test_a_login_in_a_variable_reaches_no_key_no_file_and_no_message(monkeypatch, servers, tmp_path):
    one, _ = servers
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", one.v1.replace("http://", "http://user:pass-word@"))
    learner = make(tmp_path)
    identity = {"model": ROUTE, "backend": "litellm", "endpoint": one.v1}
    assert learner.embedding_cache.key("a text") == key_of(identity)
    one.rule = echo_key(401)
    with pytest.raises(EmbeddingError, match="failed with") as info:
        learner.embed(TEXTS)
    assert "pass-word" not in str(info.value)
    assert all(b"pass-word" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"pass-word" not in pickle.dumps(learner)


def test_an_address_that_is_none_is_no_secret_and_no_crash():
    assert public_address("http://[") == ""
    assert public_address("https://user:pw@host/v1/?key=1#x") == "https://host/v1"


def test_known_vectors_are_read_without_litellm_and_a_variable_in_a_file_counts_once_something_is_asked(
    monkeypatch, servers, tmp_path
):
    """litellm reads a .env file when it is loaded: a process whose environment named no address has one by then."""
    one, _ = servers
    with monkeypatch.context() as patch:
        patch.setenv("HOSTED_VLLM_API_BASE", one.v1)
        make(tmp_path).embed(TEXTS)
    one.requests.clear()
    (tmp_path / "settings.env").write_text(f"HOSTED_VLLM_API_BASE={one.v1}\n")
    code = f"""
        import os, sys
        import dotenv.main
        dotenv.main.find_dotenv = lambda *args, **kwargs: sys.argv[1] + "/settings.env"
        from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner
        learner = Qwen3EmbeddingValueLearner({ROUTE!r}, cache_dir=sys.argv[1] + "/cache", features=None)
        os.environ["HOSTED_VLLM_API_BASE"] = {one.v1!r}
        learner.embed({TEXTS!r})
        assert "litellm" not in sys.modules
        del os.environ["HOSTED_VLLM_API_BASE"]
        learner.embed({TEXTS[:2]!r} + ["one more"])
        print(learner.embedding_cache.key("a text").hex())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == key_of({"model": ROUTE, "backend": "litellm", "endpoint": one.v1}).hex()
    assert {text for batch in one.asked for text in batch} == {"one more", PROBE_TEXTS[0]}
