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
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

REQUESTS, CALLERS = "dspy_qvl requests", "dspy_qvl callers"  # the names of the threads

_LOOPS: dict[tuple[int, str], asyncio.AbstractEventLoop] = {}  # by process: threads do not survive a fork
_STARTING = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_STARTING.release)


def on_our_loop(coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    """Run a coroutine of ours on this process's loop for requests."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop(REQUESTS))


def result_of(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """The result of a caller's function; an awaitable is awaited on the loop for callers' code.

    Raises:
        What the function raised.
    """
    result = function(*given, **options)
    if not inspect.isawaitable(result):
        return result
    if threading.current_thread().name == CALLERS:  # called from there itself: the loop must not wait for itself
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(contextvars.copy_context().run, asyncio.run, _awaited(result)).result()
    future = asyncio.run_coroutine_threadsafe(_awaited(result), _loop(CALLERS))
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
            threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
    return loop
