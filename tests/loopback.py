"""A real HTTP server on this machine that answers as embedding providers do, and fails as they do.

    with Loopback() as server:
        server.next(status(429, retry_after="0.1"), None)    # the first request is refused, the second answered
        server.rule = too_many_texts(8)                      # holds for every request that `next` says nothing of
        HostedModel("openai/m", api_base=server.v1)(["a text"])
        server.asked                                         # [["a text"], ["a text"]]

A fault takes a request and gives a reply, or None to answer as usual. Vectors are the lexical model's.
"""

import base64
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from dspy_qvl.embedding.models.lexical import LexicalModel

SIZE = 64


@dataclass(frozen=True)
class Request:
    """What came in; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def texts(self) -> list[str]:
        given = self.body["input"]
        return [given] if isinstance(given, str) else given


@dataclass(frozen=True)
class Reply:
    """What goes out: after `wait` seconds, only the first `n_sent` bytes of the body (None: all, -1: no reply).

    `pieces` come after the body, for as long as they come and somebody listens.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    n_sent: int | None = None
    pieces: Iterable[bytes] | None = None


Fault = Callable[[Request], Reply | None]


class Loopback:
    """The server; a context manager. `delay` is how many seconds every answer takes."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.requests: list[Request] = []
        self.rule: Fault | None = None
        self.most_at_once = 0
        self._faults: deque[Fault | None] = deque()
        self._at_once = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def next(self, *faults: Fault | None) -> None:
        """What the next requests are met with, one each, before `rule` holds again; None is a usual answer."""
        self._faults.extend(faults)

    @property
    def asked(self) -> list[list[str]]:
        """The texts of every request, in the order they came."""
        return [request.texts for request in self.requests]

    @property
    def at_once(self) -> int:
        """Requests that are being answered."""
        return self._at_once

    @property
    def v1(self) -> str:
        return f"{self.root}/v1"

    def __enter__(self) -> "Loopback":
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # header and body are two writes: the second would wait 40 ms

            def do_POST(self) -> None:
                loopback._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a client that gave up waiting

        self._server = Server(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.path, headers, body, time.monotonic())
        with self._lock:
            self.requests.append(request)
            fault = self._faults.popleft() if self._faults else self.rule
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = (fault(request) if fault else None) or answer(request)
            self._over.wait(self.delay + reply.wait)
            self._send(handler, reply)
        finally:
            with self._lock:
                self._at_once -= 1

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.n_sent != -1:
            handler.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                handler.send_header(name, value)
            if reply.pieces is None:
                handler.send_header("Content-Length", str(len(reply.body)))
            handler.end_headers()
            handler.wfile.write(reply.body[: reply.n_sent])
            for piece in reply.pieces or ():
                handler.wfile.write(piece)
            handler.wfile.flush()
        if reply.n_sent is not None or reply.pieces is not None:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)


def vectors(texts: list[str]) -> np.ndarray:
    """What the server's model gives, (n, SIZE) float32."""
    return LexicalModel(SIZE)(texts)


def answer(request: Request, change: Callable[[list[dict[str, Any]]], None] = lambda rows: None) -> Reply:
    """The proper answer, with its rows changed by `change`; ten tokens a text."""
    texts = request.texts
    rows = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors(texts))]
    change(rows)
    tokens = 10 * len(texts)
    if request.path.endswith("/api/embed"):  # Ollama's own
        shape = {"model": request.body["model"], "embeddings": [row["embedding"] for row in rows]}
        return _json({**shape, "prompt_eval_count": tokens})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "model": request.body["model"], "data": rows, "usage": usage})


def _json(body: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode())


# Refusals


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """A refusal of OpenAI's shape; `retry_after="1"` becomes the header Retry-After."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    body = {"error": {"message": message, "type": "refused", "code": code}}
    return lambda request: replace(_json(body, code), headers=named)


def too_many_texts(limit: int, code: int = 400) -> Fault:
    """Refuses batches of more than `limit` texts."""
    refuse = status(code, f"batch size is invalid, it should not be larger than {limit}")
    return lambda request: refuse(request) if len(request.texts) > limit else None


def poison(*texts: str, code: int = 400, message: str = "input cannot be processed") -> Fault:
    """Refuses batches that hold one of the texts."""
    return where(texts, status(code, message))


def where(texts: Iterable[str], fault: Fault) -> Fault:
    """The fault, for batches that hold one of the texts."""
    return lambda request: fault(request) if set(texts) & set(request.texts) else None


def echo_key(code: int) -> Fault:
    """A refusal that repeats the request's Authorization header."""
    return lambda request: status(code, f"refused {request.headers.get('authorization')}")(request)


def redirect(to: str, code: int = 307) -> Fault:
    """Points elsewhere, with a path of its own or to the same one."""
    return lambda request: Reply(code, b"{}", {"Location": to if to.count("/") > 2 else to + request.path})


# Failures of the connection


def hang(seconds: float = 60.0) -> Fault:
    return lambda request: replace(answer(request), wait=seconds)


def endless(code: int = 200, piece: bytes = b" " * 2**16, every: float = 0.0) -> Fault:
    """Never stops sending, a piece every so many seconds."""

    def pieces() -> Iterable[bytes]:
        while True:
            yield piece
            time.sleep(every)

    return lambda request: Reply(code, pieces=pieces())


def close_mid_body(request: Request) -> Reply:
    return replace(answer(request), n_sent=40)


def close_unanswered(request: Request) -> Reply:
    return Reply(n_sent=-1)


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


# Answers that are wrong, or only look it


def unparsable(request: Request) -> Reply:
    return Reply(body=b'{"object": "list", "data": [{"ind')


def one_too_few(request: Request) -> Reply:
    return answer(request, lambda rows: rows.pop())


def shuffled(request: Request) -> Reply:
    return answer(request, lambda rows: rows.reverse())


def unnumbered(request: Request) -> Reply:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            del row["index"]

    return answer(request, change)


def in_base64(request: Request) -> Reply:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["embedding"] = base64.b64encode(np.asarray(row["embedding"], "<f4").tobytes()).decode()

    return answer(request, change)


def filled(value: float, *texts: str) -> Fault:
    """The vectors of these texts (none given: of all) hold nothing but `value`."""

    def change(rows: list[dict[str, Any]], request: Request) -> None:
        for row, text in zip(rows, request.texts, strict=True):
            if not texts or text in texts:
                row["embedding"] = [value] * SIZE

    return lambda request: answer(request, lambda rows: change(rows, request))


def ragged(request: Request) -> Reply:
    return answer(request, lambda rows: rows[0]["embedding"].pop())


def other_size(request: Request) -> Reply:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["embedding"] = row["embedding"][: SIZE // 2]

    return answer(request, change)


def other_model(request: Request) -> Reply:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["embedding"] = row["embedding"][::-1]

    return answer(request, change)
