"""Files that are written beside their place, and moved there once they are whole.

    .model.qvl.3f9c0a1b2d4e5f60.new ─► model.qvl

Whoever writes one removes it again, whatever happens. What a killed process left is removed by the next that writes
the same file, once it is so old that nobody can be writing it any more.
"""

import contextlib
import os
import re
import secrets
from pathlib import Path

ABANDONED_SECONDS = 3600.0  # without a byte being written


def draft_of(path: Path) -> Path:
    """Where a file is written before it is moved into place; no other thread or process ever has the same."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")


def sweep(path: Path, draft: Path) -> None:
    """Remove drafts of a file that were abandoned.

    Args:
        path: the file.
        draft: one that was just written to: it tells the time by the clock of its file system, which need not be ours.
    """
    name = re.escape(path.name)
    # The second form, and shorter numbers in the first, are those of version 0.1.0.
    drafts = re.compile(rf"(\.{name}\.[0-9a-z_]{{8,16}}|{name}\.[0-9]+-[0-9]+)\.new(-wal|-shm|-journal)?")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        now = draft.stat().st_mtime
        for entry in entries:
            if drafts.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if now - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                        os.unlink(entry.path)
