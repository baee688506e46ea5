"""Measures a table of 1,000,000 vectors that exist already: how long it takes to make, what it keeps, a lookup.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/vectors.py [N_TEXTS]

Vectors are float32 of 256 columns, random. Rows: a memory-mapped file; a callable over the same file, with a `version`
and without; faiss's IndexIDMap2 over IndexFlat, with ids of its own, with a `version` and without. Each row is measured
in a process of its own, in CPU time. Memory is Python's and numpy's, as `tracemalloc` counts it in a second making (it
slows the code, so it is not timed); neither the caller's texts and index nor the pages of the mapped file are in it. A
lookup is the median of 20, of texts drawn anew each time, with the file in the page cache.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from dspy_qvl import Precomputed

SIZE = 256
LOOKUPS = (1, 256, 4096)
FIRST_ID = 10**12  # ids of the index: 7 apart, from here
KINDS = ("array", "callable", "callable, version", "IndexIDMap2", "IndexIDMap2, version")


def vectors_of(kind: str, path: Path) -> tuple[Any, dict[str, Any]]:
    """The vectors of a row of the table, and the settings that go with them."""
    rows = np.load(path, mmap_mode="r")
    settings: dict[str, Any] = {"version": "1"} if "version" in kind else {}
    if kind == "array":
        return rows, settings
    if kind.startswith("callable"):
        return lambda ids: rows[ids], settings
    import faiss

    ids = FIRST_ID + 7 * np.arange(len(rows))
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(SIZE))
    index.add_with_ids(rows, ids)
    return index, {"ids": ids, **settings}


def measure(kind: str, path: Path) -> None:
    vectors, settings = vectors_of(kind, path)
    n_texts = len(np.load(path, mmap_mode="r"))
    texts = [f"text {number} of a store of vectors" for number in range(n_texts)]
    start = time.process_time()
    table = Precomputed(texts, vectors, **settings)
    made = time.process_time() - start
    rng = np.random.default_rng(0)
    times = {}
    for n in LOOKUPS:
        taken = []
        for _ in range(20):
            some = [texts[row] for row in rng.integers(n_texts, size=n).tolist()]
            start = time.process_time()
            table(some)
            taken.append(time.process_time() - start)
        times[n] = 1e3 * statistics.median(taken)
    tracemalloc.start()
    again = Precomputed(texts, vectors, **settings)
    kept, peak = (number / 1e6 for number in tracemalloc.get_traced_memory())
    assert again.digest == table.digest
    shown = " ".join(f"{times[n]:>8.2f}" for n in LOOKUPS)
    print(f"{kind:<22}{made:>8.1f} s{kept:>9.0f} MB{peak:>9.0f} MB  {shown}  ms")


def main() -> None:
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
        return
    n_texts = int(sys.argv[1]) if len(sys.argv) == 2 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        file = np.lib.format.open_memmap(path, "w+", np.float32, (n_texts, SIZE))
        for start in range(0, n_texts, 8192):
            some = file[start : start + 8192]
            some[:] = np.random.default_rng(start).standard_normal(some.shape, dtype=np.float32)
        del file, some
        lookups = " ".join(f"{n:>8,}" for n in LOOKUPS)
        print(
            f"{f'{n_texts:,} x {SIZE}':<22}{'made':>10}{'kept':>12}{'peak':>12}  {lookups}  texts looked up", flush=True
        )
        for kind in KINDS:
            subprocess.run([sys.executable, __file__, kind, str(path)], check=True, env=dict(os.environ))


if __name__ == "__main__":
    main()
