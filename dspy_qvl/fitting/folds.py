"""Folds to cross-validate on, and rows to hold out; rows of one group are never split."""

import hashlib
import math
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dspy_qvl.errors import LARGEST_SCORE, InputError, is_list, is_missing, warn
from dspy_qvl.measures import numbered

Members = Sequence[Hashable]  # the group of each row
FEW_GROUPS = 20

# What Unicode lets be ignored beside control and format characters: joiners, fillers, variation selectors.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0") | frozenset(map(chr, range(0xFE00, 0xFE10)))


def folded(text: str) -> str:
    """A text without the differences of copies: Unicode form, letter case, white space, invisible characters."""
    plain = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
    if plain.isascii() and plain.isprintable():
        return plain
    # Cc and Cf are control and format characters: a byte order mark, a zero-width space, a soft hyphen.
    kept = (one for one in plain if one not in INVISIBLE and unicodedata.category(one) not in ("Cc", "Cf"))
    return " ".join("".join(kept).split())


def copies(texts: Sequence[str], vectors: NDArray[np.floating[Any]] | None = None) -> list[int]:
    """The first row that each row is a copy of, (n,): their texts are equal once folded, or their vectors are.

    Found by hashing, so that 100,000 texts take a second. Vectors that are equal for all texts tell nothing.

    Args:
        texts: a text for each row.
        vectors: their embedding, (n, d); None to go by the texts alone.
    """
    views: list[Sequence[Hashable]] = [[folded(text) for text in texts]]
    if vectors is not None:
        digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in vectors]
        if len(set(digests)) > 1:
            views.append(digests)
    root = list(range(len(texts)))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = row = root[root[row]]
        return row

    for keys in views:
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            a, b = find(first.setdefault(key, row)), find(row)
            root[max(a, b)] = min(a, b)
    return [find(row) for row in range(len(texts))]


def members_of(groups: Sequence[Hashable], copied: Sequence[int]) -> list[Hashable]:
    """The group of each row, (n,), such that copies are together and groups stay apart.

    A text that stands in several groups ("I don't know", given to many questions) becomes a group of its own: joining
    the groups that share it would leave few of them, or one.

    Args:
        groups: the caller's group of each row, (n,).
        copied: the first row that each row is a copy of, (n,).
    """
    stands_in: dict[int, set[Hashable]] = {}
    for group, first in zip(groups, copied, strict=True):
        stands_in.setdefault(first, set()).add(group)
    return [
        ("group", group) if len(stands_in[first]) == 1 else ("copies", first)
        for group, first in zip(groups, copied, strict=True)
    ]


def make_folds(members: Members, n_folds: int, rng: "np.random.Generator") -> list[NDArray[np.intp]]:
    """The rows of each fold, folds of nearly equal size.

    Groups are shuffled, then dealt from the largest to the smallest, each to the fold with the fewest rows.

    Args:
        members: the group of each row.
        n_folds: folds wanted, at least 2; with fewer groups there are fewer, and a warning says what that means.
        rng: source of the shuffle.

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
        warn(
            f"cv_folds={n_folds} is more than the {len(groups)} that can be held out apart from each other (a group or "
            f"query is never split, nor are copies of a text), so there are {len(groups)} folds; figures from so few, "
            "and the penalty they choose, say little of what is new: rate more of them.",
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
            warn(
                "nothing is held out, since there are only two texts or groups; the validation figures are NaN.",
            )
    return np.setdiff1d(np.arange(n), held), np.array(sorted(held), dtype=np.intp)


def sample(members: Members, at_most: int, rng: "np.random.Generator") -> NDArray[np.intp]:
    """Rows of whole groups drawn at random, ascending: about `at_most`; of fewer rows all.

    Where groups are so large that fewer than 20 would be drawn, of each its share: two genres of seven say little.
    """
    if len(members) <= at_most:
        return np.arange(len(members))
    groups = numbered(members)
    sizes = np.bincount(groups)
    order = rng.permutation(len(sizes))
    n_groups = int(np.searchsorted(np.cumsum(sizes[order]), at_most, side="right"))
    if n_groups >= min(FEW_GROUPS, len(sizes)):
        return np.flatnonzero(np.isin(groups, order[:n_groups]))
    shuffled = rng.permutation(len(members))
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    place = np.arange(len(members)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the group
    wanted = np.maximum(2, np.round(sizes * (at_most / len(members))))
    return np.sort(by_group[place < np.repeat(wanted, sizes)])


def _group_rows(members: Members) -> list[list[int]]:
    """The rows of each group, groups in order of appearance."""
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(members):
        rows.setdefault(group, []).append(row)
    return list(rows.values())


def check_groups(groups: object, n_texts: int) -> list[Any]:
    """One hashable group a text, of at least two groups.

    Raises:
        InputError: as `check_group_list`, or fewer than two groups.
    """
    entries = check_group_list(groups, n_texts)
    if len(set(entries)) < 2:
        raise InputError("groups puts every text into one group; at least two groups are needed to hold one out.")
    return entries


def check_group_list(groups: object, n: int, what: str = "groups", of: str = "text") -> list[Any]:
    """One hashable group a text, or a row.

    Args:
        groups: the list to check.
        n: the number of texts.
        what: how an error names the list.
        of: how it names a text.

    Raises:
        InputError: not a list, the wrong count, or a group that is missing or cannot be compared.
    """
    if isinstance(groups, set | frozenset | Mapping) or not is_list(groups):
        raise InputError(f"{what} must be a list with one entry a {of}, but got {type(groups).__name__}.")
    entries = [entry.item() if isinstance(entry, np.generic) else entry for entry in groups]
    if len(entries) != n:
        raise InputError(f"{what} has {len(entries)} entries but there are {n} {of}s; give one group a {of}.")
    for row, entry in enumerate(entries):
        if any(map(is_missing, entry)) if isinstance(entry, tuple) else is_missing(entry):
            raise InputError(
                f"{what}[{row}] is {entry}; every {of} needs a group, and {of}s without one are not alike."
            )
    try:
        set(entries)
    except TypeError as error:
        raise InputError(
            f"{what} must hold what can be compared, strings, numbers or tuples of them: {error}."
        ) from None
    return entries


def check_scores_differ(scores: Sequence[float]) -> None:
    """Refuse ratings that say nothing: fewer than two, or all the same.

    Raises:
        InputError: fewer than 2 scores, or all of one value.
    """
    if len(scores) < 2:
        raise InputError(f"training needs at least 2 rated texts, but there are {len(scores)}; add more and try again.")
    if 0 < max(scores) - min(scores) < 1 / LARGEST_SCORE:
        raise InputError(f"the scores differ by less than {1 / LARGEST_SCORE:g}; rescale them.")
    if min(scores) == max(scores):
        raise InputError(
            f"all {len(scores)} scores are {scores[0]:g}; there is nothing to learn until two texts differ in score."
        )
