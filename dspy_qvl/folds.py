"""Which rows go where: folds to cross-validate on, and rows to hold out. Rows of one group are never split."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import InputError, QVLWarning

Members = Sequence[Any]  # the group of each row


def joined(groups: Members, texts: Sequence[str]) -> list[int]:
    """The group of each row, where groups that share a text are one: the same text never stands on two sides."""
    first: dict[Any, int] = {}
    root = list(range(len(texts)))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = row = root[root[row]]
        return row

    for row, (group, text) in enumerate(zip(groups, texts, strict=True)):
        for key in (("group", group), ("text", text)):
            root[find(row)] = find(first.setdefault(key, row))
    return [find(row) for row in range(len(texts))]


def make_folds(members: Members, n_folds: int, rng: "np.random.Generator") -> list[NDArray[np.intp]]:
    """The rows of each fold, folds of nearly equal size.

    Groups are shuffled, then dealt from the largest to the smallest, each to the fold with the fewest rows.

    Args:
        members: the group of each row.
        n_folds: folds wanted, at least 2; with fewer groups there are fewer, and a warning says so.
        rng: where the shuffle comes from.

    Raises:
        InputError: all rows are one group.
    """
    groups = _group_rows(members)
    if len(groups) < 2:
        raise InputError(
            "the rated texts to cross-validate on are all one group, or one text rated again and again; "
            "rate at least two different ones."
        )
    if n_folds > len(groups):
        warnings.warn(
            f"cv_folds={n_folds} is more than there are texts to split ({len(groups)}); {len(groups)} are used.",
            QVLWarning,
            stacklevel=4,
        )
    shuffled = [groups[number] for number in rng.permutation(len(groups))]
    folds: list[list[int]] = [[] for _ in range(min(n_folds, len(groups)))]
    for rows in sorted(shuffled, key=len, reverse=True):  # stable: equal sizes stay shuffled
        min(folds, key=len).extend(rows)
    return [np.array(sorted(fold), dtype=np.intp) for fold in folds]


def hold_out(
    n: int, fraction: float, members: Members, rng: "np.random.Generator"
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows to learn from, and rows to hold out: about n * fraction, rounded up, in whole groups.

    At least two groups stay to learn from; if no group is small enough, the smallest is held out.
    """
    groups = _group_rows(members)
    wanted = math.ceil(n * fraction - 1e-9)
    held: list[int] = []
    spare = len(groups) - 2
    for number in rng.permutation(len(groups)):
        if spare > 0 and len(held) + len(groups[number]) <= wanted:
            held.extend(groups[number])
            spare -= 1
    if wanted and not held:
        if len(groups) > 2:
            held = min(groups, key=len)
        elif len(groups) == 2:
            warnings.warn(
                "nothing is held out, since there are only two texts or groups; the validation figures are NaN.",
                QVLWarning,
                stacklevel=4,
            )
    return np.setdiff1d(np.arange(n), held), np.array(sorted(held), dtype=np.intp)


def _group_rows(members: Members) -> list[list[int]]:
    """The rows of each group, groups in order of appearance."""
    rows: dict[Any, list[int]] = {}
    for row, group in enumerate(members):
        rows.setdefault(group, []).append(row)
    return list(rows.values())
