"""Where a request may go, and how much an answer may bring: loopback servers that point elsewhere, or never stop."""

import asyncio
import contextlib
import gzip
import inspect
import json
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zlib

import dspy
import httpx
import numpy as np
import pytest

from dspy_qvl import EmbeddingError, InputError, Qwen3EmbeddingValueLearner
from dspy_qvl.embedding.models.hosted import exchange, request
from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits
from dspy_qvl.embedding.models.hosted.providers import PROVIDERS, THROUGH_OPENAI
from tests.loopback import Loopback, Reply, answer, endless, redirect, status, vectors

KEY = "sk-secret-123456"
TEXTS = ["good", "bad", "so so"]
ROUTES = {
    "openai/m": "/v1",
    "openrouter/qwen/qwen3-embedding-8b": "/v1",
    "dashscope/text-embedding-v4": "/v1",
    "hosted_vllm/m": "/v1",
    "nebius/m": "/v1",
    "together_ai/m": "/v1",
    "fireworks_ai/m": "/v1",
    "mistral/mistral-embed": "/v1",
    "litellm_proxy/m": "",
    "ollama/m": "",
    "gemini/gemini-embedding-001": "",
    "voyage/m": "/v1/embeddings",
    "cohere/embed-v4.0": "/v1/embed",
    "jina_ai/m": "/v1",
    "openai_like/m": "/v1",
    "azure/m": "",
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with Loopback() as server:
        yield server


@pytest.fixture
def other():
    with Loopback() as server:
        yield server


def hosted(server, route="openai/m", **limits):
    limits = Limits(**{"timeout": 30.0, "max_attempts": 1, "first_wait": 0.01, **limits})
    options = {"api_version": "2024-02-01"} if route.startswith("azure/") else None
    return HostedModel(route, api_key=KEY, api_base=server.root + ROUTES[route], limits=limits, options=options)


def own(server, route="openai/m", **given):
    embedder = dspy.Embedder(route, api_base=server.root + ROUTES[route], api_key=KEY, **given)
    return Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=None, features=None)


class TestRedirects:
    @pytest.mark.parametrize("route", ROUTES)
    def test_no_text_and_no_key_goes_to_another_host_on_any_route(self, server, other, route):
        server.rule = redirect(other.root)
        expected = rf"a redirect to another host: {server.root} points to {other.root}, .* give it as api_base"
        with pytest.raises(EmbeddingError, match=expected) as caught:
            hosted(server, route)(TEXTS)
        assert KEY not in str(caught.value)
        assert len(server.requests) == 1
        assert other.requests == []

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "other.invalid"])
    def test_another_name_is_another_host(self, server, code, host):
        to = server.root.replace("127.0.0.1", host)
        server.rule = redirect(f"{to}/v1/embeddings?key={KEY}", code)
        with pytest.raises(EmbeddingError, match=rf"{server.root} points to {to}, ") as caught:
            hosted(server)(TEXTS)
        assert KEY not in str(caught.value)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m", "ollama/m", "gemini/gemini-embedding-001"])
    def test_an_embedder_of_the_callers_goes_to_no_other_host_either(self, server, other, route):
        server.rule = redirect(other.root)
        with pytest.raises(EmbeddingError, match=rf"a redirect to another host: {server.root} points to {other.root}"):
            own(server, route).embed(TEXTS)
        assert other.requests == []

    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m", "ollama/m"])
    @pytest.mark.parametrize("code", [307, 308])
    def test_the_same_host_may_point_to_another_path(self, server, route, code):
        server.rule = lambda request: (
            None if "/moved" in request.path else redirect(f"{server.root}/moved{request.path}", code)(request)
        )
        np.testing.assert_array_equal(np.stack(hosted(server, route)(TEXTS)), vectors(TEXTS))
        np.testing.assert_allclose(own(server, route).embed(TEXTS), vectors(TEXTS), atol=1e-6)
        assert len(server.requests) == 4

    def test_a_circle_ends(self, server):
        server.rule = redirect(server.root)
        with pytest.raises(EmbeddingError, match="too many redirects"):
            hosted(server)(TEXTS)
        assert len(server.requests) == exchange.MOST_REDIRECTS + 1

    @pytest.mark.parametrize(
        ("here", "there", "is_same"),
        [
            ("http://a/v1", "https://a/v1/", True),
            ("https://a/v1", "http://a/v1", False),
            ("http://a:80", "http://a", True),
            ("https://a:443/x", "https://A/y", True),
            ("http://a:8000", "https://a:8443", False),
            ("http://a", "https://a:444", False),
            ("https://a", "https://b.a", False),
            ("https://a", "https://a.", False),
            ("https://a", "https://a@b", False),
        ],
    )
    def test_a_host_is_a_name_and_a_port(self, here, there, is_same):
        assert exchange._is_same_host(httpx.URL(here), httpx.URL(there)) is is_same

    def test_whoever_else_uses_the_clients_is_redirected_as_before(self, server, other):
        hosted(server)(TEXTS)
        server.rule = redirect(other.root)
        body = {"model": "m", "input": TEXTS}
        response = httpx.post(f"{server.v1}/embeddings", json=body, follow_redirects=True)
        assert response.json()["data"]
        assert len(other.requests) == 1

    def test_hooks_of_a_client_of_the_callers_still_read_answers(self, server):
        async def read(response):
            seen.append(len(await response.aread()))

        seen: list[int] = []

        async def ask():
            async with httpx.AsyncClient(event_hooks={"response": [read]}) as client:
                with exchange.bounded(10**6, 10.0):
                    return await client.post(f"{server.v1}/embeddings", json={"model": "m", "input": TEXTS})

        assert len(asyncio.run(ask()).json()["data"]) == 3
        assert seen[0] > 0

    @pytest.mark.parametrize("fault", [endless(200), endless(500), redirect("http://other.invalid")])
    def test_a_connection_that_was_given_up_is_closed(self, server, fault):
        server.rule = fault
        model = hosted(server)
        for _ in range(10):
            with pytest.raises(EmbeddingError, match=r"too large|HTTP 500|another host"):
                model(TEXTS)
        deadline = time.monotonic() + 5
        while server.at_once > 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.at_once == 0


def packed(body: bytes, encoding: str = "gzip") -> Reply:
    return Reply(body=body, headers={"Content-Encoding": encoding})


class TestSize:
    @pytest.mark.parametrize("make", [hosted, own])
    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip", "identity"])
    def test_a_packed_answer_is_unpacked(self, server, make, encoding):
        pack = {"deflate": zlib.compress, "identity": bytes}.get(encoding, gzip.compress)
        server.rule = lambda request: packed(pack(answer(request).body), encoding)
        model = make(server)
        given = np.stack(model(TEXTS)) if make is hosted else model.embed(TEXTS)
        np.testing.assert_allclose(given, vectors(TEXTS), atol=1e-6)
        assert server.requests[0].headers["accept-encoding"] == "gzip"

    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m", "ollama/m", "gemini/gemini-embedding-001"])
    @pytest.mark.parametrize("make", [hosted, own])
    def test_an_answer_beyond_the_bound_is_given_up(self, server, monkeypatch, route, make):
        monkeypatch.setattr(request, "BYTES_BESIDE", 10_000)
        monkeypatch.setattr(request, "MOST_COLUMNS", 1)
        server.rule = lambda request: packed(gzip.compress(b" " * 10_000_000))
        ask = hosted(server, route) if make is hosted else own(server, route).embed
        with pytest.raises(EmbeddingError, match=r"an answer that is too large: it is longer than 10,192 bytes"):
            ask(TEXTS)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("packing", ["br", "zstd", "gzip, gzip"])
    def test_what_was_not_asked_for_is_not_unpacked(self, server, packing):
        server.rule = lambda request: packed(b"123", packing)
        with pytest.raises(EmbeddingError, match=f"an answer that cannot be read: it is packed as '{packing}'"):
            hosted(server)(TEXTS)

    def test_what_is_said_to_be_packed_and_is_not_is_refused(self, server):
        server.rule = lambda request: packed(b"123")
        with pytest.raises(EmbeddingError, match="an answer that cannot be read: it cannot be unpacked"):
            hosted(server)(TEXTS)

    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m", "ollama/m"])
    @pytest.mark.parametrize("code", [200, 400, 500])
    def test_an_endless_answer_ends_at_once(self, server, route, code):
        server.rule = endless(code)
        started = time.monotonic()
        expected = "an answer that is too large" if code == 200 else f"HTTP {code}"
        with pytest.raises(EmbeddingError, match=expected):
            hosted(server, route)(TEXTS)
        assert time.monotonic() - started < 5

    @pytest.mark.parametrize("make", [hosted, own])
    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m"])
    @pytest.mark.parametrize("message", ["://" * 4_000_000, "bearer " * 1_700_000, "[" * 12_000_000])
    def test_a_refusal_of_any_length_is_cut_before_it_is_looked_at(self, server, make, route, message):
        server.rule = status(401, message)
        model = make(server, route)
        started = time.monotonic()
        with pytest.raises(EmbeddingError, match="HTTP 401" if make is hosted else "AuthenticationError") as caught:
            model(TEXTS) if make is hosted else model.embed(TEXTS)
        assert time.monotonic() - started < 4
        assert len(str(caught.value)) < 25_000

    def test_vectors_of_many_columns_with_every_digit_pass(self, server):
        def rule(request):
            row = {"index": 0, "embedding": np.random.default_rng(0).normal(size=12_288).tolist()}
            return Reply(body=json.dumps({"data": [row], "model": "m"}, indent=4).encode())

        server.rule = rule
        assert len(hosted(server)(TEXTS[:1])[0]) == 12_288

    def test_a_bomb_takes_neither_memory_nor_time(self, server):
        """300 MB of zeros in 0.3 MB."""
        packer = zlib.compressobj(9, wbits=31)
        megabyte = bytes(2**20)
        bomb = b"".join(packer.compress(megabyte) for _ in range(300)) + packer.flush()
        server.rule = lambda request: packed(bomb)
        script = f"""
            import resource, time
            import litellm
            from dspy_qvl.embedding.models.hosted.hosted import HostedModel, Limits

            def ask(api_base, texts):
                model = HostedModel("openai/m", api_key="k", api_base=api_base, limits=Limits(max_attempts=1))
                try:
                    model(texts)
                except RuntimeError as error:
                    return error

            peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            ask("http://127.0.0.1:1", ["a"])
            before, started = peak(), time.perf_counter()
            error = ask({server.v1!r}, ["text"] * 64)
            print(round(peak() - before), round(time.perf_counter() - started, 2), error)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=100
        )
        megabytes, seconds, said = done.stdout.split(maxsplit=2)
        assert "an answer that is too large: it is longer than 68,157,440 bytes" in said
        assert float(megabytes) < 300
        assert float(seconds) < 5


class TestTime:
    @pytest.mark.parametrize("make", [hosted, own])
    def test_an_answer_that_drips_is_left_in_time(self, server, make):
        server.rule = endless(200, b" ", every=0.05)
        started = time.monotonic()
        ask = hosted(server, timeout=0.5) if make is hosted else own(server, timeout=0.5, max_retries=0).embed
        with pytest.raises(EmbeddingError, match=r"a timeout|no whole answer within 0\.5 s"):
            ask(TEXTS)
        assert time.monotonic() - started < 5


class Plain:
    """A server that sends these bytes to whoever asks it anything."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.serve, daemon=True).start()
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_):
        self.socket.close()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(2**16)
                    for piece in self.pieces:
                        client.sendall(piece)


HEAD = b"HTTP/1.1 200 OK\r\n"
NO_HTTP = {
    "another protocol": ((b"SSH-2.0-OpenSSH_9.6\r\n",), "Bad status line.* b'SSH-2.0"),
    "a huge header": ((HEAD, b"X: ", b"a" * 100_000, b"\r\n\r\n"), "Got more than 8190 bytes"),
    "many headers": ((HEAD, b"X: a\r\n" * 50_000, b"\r\n"), "Too many headers"),
    "no length": ((HEAD, b"Content-Length: x\r\n\r\n{}"), "Invalid character in Content-Length"),
    "no chunks": ((HEAD, b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}"), "Invalid character in chunk size"),
}


class TestConnections:
    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m", "ollama/m"])
    @pytest.mark.parametrize("fault", NO_HTTP)
    def test_an_answer_that_is_no_http_says_what_came(self, server, route, fault):
        sent, said = NO_HTTP[fault]
        with Plain(*sent) as host:
            model = HostedModel(route, api_key=KEY, api_base=f"http://{host}/v1", limits=Limits(max_attempts=1))
            expected = rf"failed with an answer that is no proper HTTP.*: {said}.* Check api_base"
            with pytest.raises(EmbeddingError, match=expected):
                model(TEXTS)

    @pytest.mark.parametrize("route", ["openai/m", "hosted_vllm/m", "ollama/m"])
    def test_a_tls_fault_says_so(self, server, route):
        with Plain(b"HTTP/1.1 400 Bad Request\r\n\r\n") as host:
            model = HostedModel(route, api_key=KEY, api_base=f"https://{host}/v1", limits=Limits(max_attempts=3))
            expected = r"failed with a TLS fault: \[SSL.* version.*; check that api_base speaks https"
            with pytest.raises(EmbeddingError, match=expected):
                model(TEXTS)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_an_embedder_of_the_callers_says_so_too(self, server, scheme):
        with Plain(b"SSH-2.0-OpenSSH_9.6\r\n") as host:
            embedder = dspy.Embedder("openai/m", api_base=f"{scheme}://{host}/v1", api_key=KEY, max_retries=0)
            expected = "a TLS fault: " if scheme == "https" else "an answer that is no proper HTTP|a connection error"
            with pytest.raises(EmbeddingError, match=expected):
                Qwen3EmbeddingValueLearner(embedder=embedder, cache_dir=None).embed(TEXTS)


class TestProviders:
    def test_litellm_asks_every_provider_but_these(self):
        """Its dispatch is read from its source: to try them all, all their clients would have to be installed."""
        import litellm

        dispatched = inspect.getsource(litellm.main)
        dispatched = dispatched[dispatched.rindex("\ndef embedding(") :].partition("\ndef ")[2].partition("\ndef ")[0]
        asked = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"custom_llm_provider (?:==|in) .*", dispatched))))
        assert asked >= set(PROVIDERS)
        assert not asked & set(THROUGH_OPENAI)

    @pytest.mark.parametrize("provider", THROUGH_OPENAI)
    def test_a_provider_that_litellm_does_not_ask_is_refused_with_the_way_round(self, provider):
        expected = rf"litellm gets no embeddings from '{provider}'; .*'openai/an/embedding' with api_base='https://"
        with pytest.raises(InputError, match=expected):
            Qwen3EmbeddingValueLearner(f"{provider}/an/embedding")
        with pytest.raises(InputError, match=expected):
            Qwen3EmbeddingValueLearner(embedder=dspy.Embedder(f"{provider}/an/embedding"))
