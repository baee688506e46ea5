"""Files that are written beside their place, and moved there once they are whole.

    .model.qvl.3f9c0a1b2d4e5f60.new ─► model.qvl

Whoever writes a draft removes it again, whatever happens. The draft of a killed process is removed by the next that
writes the same file, once it is so old that nobody can be writing it any more.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

ABANDONED_SECONDS = 3600.0  # without a byte being written
SUFFIXES = ("", "-wal", "-shm", "-journal")  # of a draft, and of the files that SQLite puts beside it


@contextlib.contextmanager
def replacing(path: Path, move: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """Give the path of a draft, which takes the place of a file when the block is done; if it fails, the file stays.

    Args:
        path: the file.
        move: (draft, file) moves the draft into place; `os.replace` by default.

    Raises:
        OSError: the draft cannot be moved.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")  # no other thread or process has the same
    try:
        yield draft
        _sweep(path, draft)
        (move or os.replace)(draft, path)
    finally:
        for suffix in SUFFIXES:
            with contextlib.suppress(OSError):
                os.unlink(f"{draft}{suffix}")


def _sweep(path: Path, draft: Path) -> None:
    """Remove abandoned drafts of a file.

    Args:
        path: the file.
        draft: one that was just written to: it tells the time by the clock of its file system, which need not be ours.
    """
    name = re.escape(path.name)
    # The second form, and shorter numbers in the first, are those of version 0.1.0.
    drafts = re.compile(rf"(\.{name}\.[0-9a-z_]{{8,16}}|{name}\.[0-9]+-[0-9]+)\.new({'|'.join(SUFFIXES)})")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        now = draft.stat().st_mtime
        for entry in entries:
            if drafts.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if now - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                        os.unlink(entry.path)
