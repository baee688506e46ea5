"""No key in what is shown, logged or kept of a failure, whoever asked: a route of ours or the caller's own embedder."""

import asyncio
import base64
import functools
import time
import traceback
from urllib.parse import quote, quote_plus

import dspy
import numpy as np
import pytest

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner, TextsRefusedError
from dspy_qvl.embedding.models.hosted.redaction import LONGEST_READ, reason, without_secrets
from tests.loopback import Loopback, status

KEY = "Zq7+/secret key?of=1&more/Zq7"
HEADER_KEY = "Zq7secret-of/one+more=Zq7"  # one that a header can hold
TEXTS = ["good", "bad", "so so"]


def encoded(key: str) -> dict[str, str]:
    """What the standard library makes of a key, alone and within longer texts."""
    within = {
        f"Base64 after {n} bytes": base64.b64encode(b"u" * n + b":" + key.encode() + b":x").decode() for n in range(4)
    }
    return {
        "as it is": key,
        "Base64": base64.b64encode(key.encode()).decode(),
        "Base64 of addresses": base64.urlsafe_b64encode(key.encode()).decode(),
        "percent": quote(key, safe=""),
        "percent, lower case": "".join(c if c.isalnum() or c in "-_.~" else f"%{ord(c):02x}" for c in key),
        "a form": quote_plus(key),
        "percent of Base64": quote(base64.b64encode(key.encode()).decode(), safe=""),
        **within,
    }


FORMS = encoded(HEADER_KEY)


def names_a_key(told: str) -> bool:
    """Whether eight characters in a row of a form are in a message."""
    return any(form[at : at + 8] in told for form in FORMS.values() for at in range(len(form) - 7))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Loopback() as server:
        server.rule = lambda request: status(401, f"wrong: {request.headers} " + " ".join(FORMS.values()))(request)
        yield server


class Client:
    """A model of the caller's that keeps its key as an attribute."""

    name = "a client"

    def __init__(self, api_key):
        self.api_key = api_key

    def __call__(self, texts):
        raise RuntimeError(f"refused: {FORMS}")


def client(texts, api_key):
    raise RuntimeError(f"refused: {FORMS}")


async def async_client(texts, api_key):
    raise ValueError(f"refused: {FORMS}")


def own_words(texts, api_key):
    error = TextsRefusedError(f"refused: {FORMS}", refused={0: f"refused: {FORMS}"})
    error.vectors = {row: np.ones(4, np.float32) for row in range(1, len(texts))}
    raise error


EMBEDDERS = {
    "a route": lambda server: dspy.Embedder("openai/m", api_base=server.v1, api_key=HEADER_KEY, caching=False),
    "a route of its own handler": lambda server: dspy.Embedder("hosted_vllm/m", api_base=server.v1, api_key=HEADER_KEY),
    "a callable of an embedder": lambda server: dspy.Embedder(client, api_key=HEADER_KEY),
    "an async one": lambda server: dspy.Embedder(async_client, api_key=HEADER_KEY),
    "a partial": lambda server: functools.partial(client, api_key=HEADER_KEY),
    "an object": lambda server: Client(HEADER_KEY),
    "one that tells which texts": lambda server: functools.partial(own_words, api_key=HEADER_KEY),
}


@pytest.mark.filterwarnings("ignore:embedder has no name")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("made", [*EMBEDDERS, "a route of ours"])
def test_no_key_in_the_message_chain_or_frames_of_a_failure(server, caplog, capfd, made, kind):
    caplog.set_level("DEBUG", logger="dspy_qvl")
    if made == "a route of ours":
        learner = Qwen3EmbeddingValueLearner("openai/m", api_base=server.v1, api_key=HEADER_KEY, cache_dir=None)
    else:
        learner = Qwen3EmbeddingValueLearner(embedder=EMBEDDERS[made](server), cache_dir=None)
    with pytest.raises(EmbeddingError, match=r"(?s)<key>") as caught:
        learner.embed(TEXTS) if kind == "sync" else asyncio.run(learner.aembed(TEXTS))
    errors, seen = [caught.value], []
    while errors:
        error = errors.pop()
        seen.append(f"{error!s} {error!r} {vars(error)}")
        errors += [link for link in (error.__cause__, error.__context__) if link is not None]
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename != __file__:
                seen += [
                    f"{frame.f_code.co_qualname if hasattr(frame.f_code, 'co_qualname') else ''} {name} {value!r}"
                    for name, value in frame.f_locals.items()
                ]
    for said in (*seen, caplog.text, *capfd.readouterr()):
        assert not names_a_key(said)


@pytest.mark.parametrize("form", encoded(KEY))
@pytest.mark.parametrize("key", [KEY, "sk-secret-123456", "ключ-to-everything"])
def test_a_key_is_taken_out_in_each_of_its_forms(key, form):
    told = without_secrets(f"wrong key <{encoded(key)[form]}>, said the server", [key])
    assert "<key>" in told
    assert told.startswith("wrong key <")
    assert told.endswith(">, said the server")
    assert len(told) < 60


def test_words_that_are_no_secret_stay():
    said = "HTTP 401 at http://host/v1: the key is wrong, tokens: 12, dGhlIGtleSBpcyB3cm9uZw=="
    assert without_secrets(said, [KEY, "abc", ""]) == said


@pytest.mark.parametrize("piece", ["://", "bearer  ", "?key=", "a", " ", "\n", "\u2028", HEADER_KEY])
def test_a_message_of_any_length_is_looked_at_in_no_time(piece):
    started = time.perf_counter()
    said = reason(piece * (12_000_000 // len(piece)), [HEADER_KEY])
    assert time.perf_counter() - started < 0.5
    assert len(said) <= 301
    assert not names_a_key(said)


@pytest.mark.parametrize("cut", range(len(HEADER_KEY) + 2))
def test_a_key_at_the_end_of_what_is_looked_at_is_not_shown_in_part(cut):
    before = "x " * ((LONGEST_READ - cut) // 2)
    assert not names_a_key(without_secrets(f"{before}{HEADER_KEY} and more", [HEADER_KEY]))
