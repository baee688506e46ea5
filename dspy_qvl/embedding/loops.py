"""Event loops in threads of their own, for what must be awaited: one a process for requests, one for callers' code.

Clients keep connections, and break where loops change or run side by side; here they meet one loop, which is never
closed. Callers wait for it in threads or in event loops of theirs. A caller's own code has another loop than our
requests have: it may block, and it may ask for vectors itself.
"""

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

REQUESTS, CALLERS = "requests", "callers"

_LOOPS: dict[tuple[int, str], asyncio.AbstractEventLoop] = {}  # by process: threads do not survive a fork
_STARTING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_STARTING.release)


def on_our_loop(coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    """Run a coroutine of ours on this process's loop for requests."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop(REQUESTS))


def result_of(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What a caller's function gives, awaited where it must be.

    Raises:
        What the function raised.
    """
    result = function(*given, **options)
    return waited_for(result) if inspect.isawaitable(result) else result


def waited_for(awaitable: Awaitable[T]) -> T:
    """The result of a caller's awaitable, for a thread that waits for it, whether or not an event loop runs there.

    Raises:
        What the awaitable raised.
    """
    if _running() is _loop(CALLERS):  # it was awaited there itself, and must not wait for itself
        return _in_a_thread(awaitable)
    future = asyncio.run_coroutine_threadsafe(_awaited(awaitable), _loop(CALLERS))
    try:
        return future.result()
    finally:
        future.cancel()  # the caller was interrupted; otherwise it is done


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _loop(name: str) -> asyncio.AbstractEventLoop:
    key = (os.getpid(), name)
    with _STARTING:
        loop = _LOOPS.get(key)
        if loop is None:
            loop = _LOOPS[key] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name=f"dspy_qvl {name}", daemon=True).start()
    return loop


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _in_a_thread(awaitable: Awaitable[T]) -> T:
    """The result of an awaitable on a loop that lives only for it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(asyncio.run(_awaited(awaitable)))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return future.result()
