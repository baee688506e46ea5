"""Measures the cost of a stored vector, beside diskcache and beside a plain file.

    python tests/benchmarks/cache.py [--rounds 7]

The same 1,024-column float32 vectors in fresh folders of one disk; ours and theirs in turn, after a round that is
not counted; medians of the rounds. diskcache stores the bytes, and `np.frombuffer` makes them a vector again. The
plain file is one .npy, read whole: it has no keys, no checksums and no second process, so its row has no bound.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diskcache
import numpy as np

from dspy_qvl.embedding.cache import MemoryCache
from dspy_qvl.embedding.cache.pruning import info
from dspy_qvl.embedding.cache.sqlite_store import SQLiteStore

SIZE, BATCH = 1024, 256
N_WRITES, N_READS, READ_ROUNDS, N_BATCHED = 2_000, 100, 200, 10_000


def keys(n: int, round_number: int = 0, start: int = 0) -> list[bytes]:
    """Keys as a text's digest makes them, in no order."""
    texts = [f"{round_number} {number}" for number in range(start, start + n)]
    return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]


def each(function: Callable[..., object], *columns: list) -> float:
    """Microseconds a call of a function over rows of arguments."""
    start = time.perf_counter()
    for arguments in zip(*columns, strict=True):
        function(*arguments)
    return (time.perf_counter() - start) / len(columns[0]) * 1e6


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def single(folder: Path, rounds: int) -> dict[str, list[float]]:
    """One vector at a time: written, read from disk, found in memory; a round of writes merges a journal or two."""
    vectors = np.random.default_rng(0).normal(size=(N_WRITES, SIZE)).astype(np.float32)
    rows, blobs = [vectors[i : i + 1] for i in range(N_WRITES)], [row.tobytes() for row in vectors]
    store, peer, memory = SQLiteStore(folder / "ours.sqlite", "m"), diskcache.Cache(folder / "peer"), MemoryCache(2**30)
    times: dict[str, list[float]] = {name: [] for name in ("write", "set", "read", "get", "memory")}
    for number in range(rounds + 1):
        mine = keys(N_WRITES, number)
        times["write"].append(each(store.write, [[key] for key in mine], rows))
        times["set"].append(each(peer.set, mine, blobs))
    rng = np.random.default_rng(1)
    for key, vector in zip(mine, vectors, strict=True):
        memory.put(key, vector)
    for _ in range(READ_ROUNDS + 1):
        numbers, at = rng.integers(0, rounds + 1, N_READS), rng.integers(0, N_WRITES, N_READS)
        some = [keys(1, number, start)[0] for number, start in zip(numbers.tolist(), at.tolist(), strict=True)]
        times["read"].append(each(store.read, [[key] for key in some]))
        times["get"].append(each(lambda key: np.frombuffer(peer.get(key), dtype=np.float32), some))
        times["memory"].append(each(memory.get, [mine[start] for start in at]))
        assert (store.read(some[:1])[some[0]] == vectors[at[0]]).all()
    peer.close()
    return {name: found[1:] for name, found in times.items()}


def batched(folder: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """10,000 vectors in batches of 256: float32, float16 and one .npy file."""
    vectors = np.random.default_rng(2).normal(size=(N_BATCHED, SIZE)).astype(np.float32)
    mine = keys(N_BATCHED)
    parts = [slice(start, start + BATCH) for start in range(0, N_BATCHED, BATCH)]
    np.save(folder / "plain.npy", vectors)
    times: dict[str, list[float]] = {name: [] for name in ("write 32", "write 16", "read 32", "read 16", "plain")}
    sizes = {}
    for number in range(rounds + 1):
        for name in ("32", "16"):
            store = SQLiteStore(folder / f"{name}-{number}.sqlite", "m", half=name == "16")
            times[f"write {name}"].append(
                seconds(lambda to=store: [to.write(mine[part], vectors[part]) for part in parts])
            )
            times[f"read {name}"].append(seconds(lambda of=store: [of.read(mine[part]) for part in parts]))
            sizes[name] = info(store).bytes
            store.path.unlink()
        times["plain"].append(seconds(lambda: np.load(folder / "plain.npy")))
    return {name: found[1:] for name, found in times.items()}, sizes


def line(name: str, ours: float, theirs: float, unit: str, bound: float | None = None) -> str:
    limit = "" if bound is None else f"  at most {bound:.2f}{'' if ours / theirs <= bound else '  MISSED'}"
    return f"{name:<52}{ours:>9.2f}{theirs:>10.2f} {unit:<3}{ours / theirs:>7.2f}{limit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one = {name: statistics.median(found) for name, found in single(Path(folder), options.rounds).items()}
        many, sizes = batched(Path(folder), options.rounds)
    of = {name: statistics.median(found) for name, found in many.items()}
    per_vector = {name: found / N_BATCHED * 1e6 for name, found in of.items()}
    print(f"{f'vectors of {SIZE:,} columns':<52}{'ours':>9}{'theirs':>10}    {'ratio':>7}")
    print(line("read one from disk / diskcache get", one["read"], one["get"], "µs", 1.1))
    print(line("memory hit / diskcache get", one["memory"], one["get"], "µs", 0.3))
    print(line("write one / diskcache set", one["write"], one["set"], "µs", 0.6))
    print(line("read 10,000 in batches of 256 / one .npy, each", per_vector["read 32"], per_vector["plain"], "µs"))
    print(line("bytes of 10,000, float16 / float32", sizes["16"] / 2**20, sizes["32"] / 2**20, "MiB"))
    print(
        line("write 10,000 in batches, float16 / float32, each", per_vector["write 16"], per_vector["write 32"], "µs")
    )
    print(line("read 10,000 in batches, float16 / float32, each", per_vector["read 16"], per_vector["read 32"], "µs"))


if __name__ == "__main__":
    main()
