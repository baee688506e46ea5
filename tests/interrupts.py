"""Ctrl-C at a random moment of a call."""

import random
import signal
import statistics
import time
from collections.abc import Callable

import pytest

needs_a_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signal.setitimer is missing here")
# Python itself drops an interrupt that comes in a callback of the garbage collection, and says so.
may_be_swallowed = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def interrupted(call: Callable[[], object], rng: random.Random, longest: float) -> bool:
    """Whether the call was interrupted, at a random moment of so many seconds at most."""

    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, longest))
        call()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


def seconds_of(call: Callable[[], object], n: int = 21) -> float:
    """What a call mostly takes."""
    took = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took)
