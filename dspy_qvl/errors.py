"""Every way this package says no, and every check that leads there.

    QVLError
    ├── InputError (ValueError)            what the caller gave cannot be used
    │   └── MissingTextError               an example or a prediction has not the text that is valued
    ├── NotFittedError (RuntimeError)      a value was asked for before anything was learned
    ├── EmbeddingError (RuntimeError)      the embedding model failed, or answered wrongly
    │   ├── ModelUnavailableError          the embedding model cannot be loaded here
    │   └── TextsRefusedError              the provider refuses some texts; the others have their vectors
    ├── FeatureError (RuntimeError)        a block of features failed, or answered wrongly
    └── StateError (ValueError)            a saved state is damaged, foreign, or of another model

    QVLWarning (UserWarning)               the call goes on, but something was changed or lost on the way

Each check returns its input in the one form the rest of the package uses, or raises an error that says
what came, what is needed, and what to do.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

SMALLEST_ALPHA = 1e-12  # rows have unit length, so sums over a million of them round at about 1e-10
LARGEST_ALPHA = 1e100  # its products with sums of squares must stay within float64
LARGEST_SCORE = 1e75  # the square of a mean squared error must stay within float64
LARGEST_COUNT = 10**100  # so that it can be written down: Python refuses integers of some thousand digits

BRACKETS: Mapping[type[Any], tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), dict: ("{", "}")}
SPELLED_BITS = 2000  # of an integer that is shown in digits: Python's limit may be set as low as 640 of them


class QVLError(Exception):
    """Root of all errors of dspy_qvl."""


class InputError(QVLError, ValueError):
    """What the caller gave cannot be used."""


class MissingTextError(InputError):
    """An example or a prediction has not the text that is valued."""


class NotFittedError(QVLError, RuntimeError):
    """A value was asked for before anything was learned."""


class EmbeddingError(QVLError, RuntimeError):
    """The embedding model failed, or answered wrongly.

    Attributes:
        vectors: position in the batch -> vector, of the texts that did get one before it failed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.vectors: dict[int, NDArray[np.float32]] = {}


class ModelUnavailableError(EmbeddingError):
    """The embedding model cannot be loaded here."""


class TextsRefusedError(EmbeddingError):
    """The provider refuses some texts of a batch.

    Attributes:
        refused: position in the batch -> why.
    """

    def __init__(self, message: str, *, refused: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.refused = dict(refused or {})


class FeatureError(QVLError, RuntimeError):
    """A block of features failed, or answered wrongly."""


class StateError(QVLError, ValueError):
    """A saved state is damaged, foreign, or of another model."""


class QVLWarning(UserWarning):
    """The call goes on, but something was changed or lost on the way."""


def other_model(difference: str) -> StateError:
    """The refusal to value texts, or to rank passages, with another embedding model than was learned with."""
    return StateError(
        f"this was fitted with another embedding model: {difference}. Use that model, or let this one learn anew: "
        "a value function's rated texts with migrate(path) of its file, or migrate() where it is loaded; a reranker's "
        "judged queries with unfit(), and FitValue."
    )


def unavailable(problem: str) -> ModelUnavailableError:
    """The refusal to embed with a model that cannot run here, with the three ways out."""
    return ModelUnavailableError(
        f"{problem} Three ways out: pip install 'dspy_qvl[local]' on a machine that has or can fetch the weights; "
        "model_name='openrouter/qwen/qwen3-embedding-8b' with api_key or the provider's environment variable; "
        "or model_name='lexical', which needs nothing."
    )


def shown(value: object, limit: int = 60) -> str:
    """A value as it appears inside an error message: its repr, cut to `limit` characters.

    It never fails, nor takes long for what Python has built in: the digits of an integer of 5,000 of them are refused,
    the repr of a list of a million entries takes a second, and that of somebody else's object may raise.
    """
    text = _spelled(value, limit)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _spelled(value: Any, limit: int) -> str:
    """The repr of a value, or a beginning of it of more than `limit` characters."""
    kind = type(value)
    try:
        if isinstance(value, str | bytes):
            return repr(value[: limit + 1])
        if isinstance(value, int) and value.bit_length() > SPELLED_BITS:
            return hex(value)
        if kind not in BRACKETS or not value:
            return repr(value)
    except Exception:
        return f"<{kind.__name__} without a repr>"
    written, closing = BRACKETS[kind]
    for number, entry in enumerate(value):
        written += ", " if number else ""
        if len(written) > limit:
            return written
        written += _spelled(entry, limit - len(written))
        if kind is dict:
            written += f": {_spelled(value[entry], max(0, limit - len(written)))}"
    return written + ("," if kind is tuple and len(value) == 1 else "") + closing


def characters(text: str) -> str:
    """A string as exactly that: a (str, Enum) by its value, another subclass of `str` by its characters.

    `str(text)` is "Tone.WARM", or whatever a subclass says; and what is equal to a plain string, and hashed like it,
    must not get another value under the same key.
    """
    value = text.value if isinstance(text, Enum) else text
    return str.__str__(value if isinstance(value, str) else text)


def check_text(text: object, what: str = "text") -> str:
    """A text that can be valued: any `str` that can be written as UTF-8.

    Empty and blank texts pass: people do rate the answer that says nothing (see `embedding.py`).

    Raises:
        InputError: not a string, or a string with a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} must be a string, but got {type(text).__name__}: {shown(text)}.")
    text = characters(text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate at position {error.start}, which no model can be sent as UTF-8; "
            "repair it with text.encode('utf-8', 'replace').decode()."
        ) from None
    return text


def check_texts(texts: object, what: str = "texts") -> list[str]:
    """A list of texts that can be valued.

    Raises:
        InputError: a single string, something that cannot be iterated, or a text `check_text` refuses.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"{what} must be a list of strings, but got {type(texts).__name__}: {shown(texts)}.")
    check_flat(texts, what, "a column of it, as a list")
    return [check_text(text, f"{what}[{row}]") for row, text in enumerate(texts)]


def is_list(value: object) -> TypeGuard[Iterable[Any]]:
    """Tell whether a value can be taken entry by entry: any iterable but a string, or an array without a dimension."""
    return isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) != 0


def check_flat(items: object, what: str, instead: str) -> None:
    """Refuse an array or a data frame that is no plain sequence.

    Raises:
        InputError: it has not exactly one dimension.
    """
    n_dimensions = getattr(items, "ndim", 1)
    if n_dimensions != 1:
        raise InputError(
            f"{what} must have one dimension, but the {type(items).__name__} has {n_dimensions}; give {instead}."
        )


def check_flag(flag: object, what: str) -> bool:
    """True or False.

    Raises:
        InputError: anything else.
    """
    if not isinstance(flag, bool | np.bool_):
        raise InputError(f"{what} must be True or False, but got {shown(flag)}.")
    return bool(flag)


def check_optional_string(value: object, what: str) -> str | None:
    """A string or None; the value is not shown, since it may be a secret.

    Raises:
        InputError: anything else.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"{what} must be a string or None, but got {type(value).__name__}.")
    return value


def is_missing(value: object) -> bool:
    """Tell whether a value stands for none: None, NaN, or what pandas has in its place."""
    return (
        value is None
        or (isinstance(value, float | np.floating) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def check_number(number: object, what: str) -> float:
    """A finite number as a float, a database's Decimal too; bool, None and strings are no numbers.

    Raises:
        InputError: not a number, NaN or infinite.
    """
    if isinstance(number, bool | np.bool_) or not isinstance(number, Real | Decimal):
        raise InputError(
            f"{what} must be a number, but got {type(number).__name__}: {shown(number)}{_as_number(number)}."
        )
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    except ValueError:  # Decimal("sNaN")
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{what} must be finite, but got {shown(number)}.")
    return value


def _as_number(value: Any) -> str:
    """What to write for something that is no number, but can be made one."""
    if isinstance(value, str | bool | np.bool_) or not hasattr(value, "__len__"):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
            return f"; write float({shown(value)}), which is {number:g}" if math.isfinite(number) else ""
    return ""


def check_score(score: object, what: str) -> float:
    """A rating: a finite number whose powers float64 can hold.

    Raises:
        InputError: not a number, not finite, or beyond 1e75.
    """
    value = check_number(score, what)
    if abs(value) > LARGEST_SCORE:
        raise InputError(f"{what} must lie within ±{LARGEST_SCORE:g}, but got {value:g}; rescale the scores.")
    return value


def check_alpha(alpha: object, what: str = "ridge_alpha") -> float:
    """A ridge penalty: finite and > 0.

    Raises:
        InputError: not a number, not finite, or not above 0.
    """
    value = check_number(alpha, what)
    if value <= 0:
        raise InputError(f"{what} must be above 0, but got {value:g}; without a penalty there is no unique ridge fit.")
    if value < SMALLEST_ALPHA:
        raise InputError(
            f"{what} must be at least {SMALLEST_ALPHA:g}, but got {value:g}; "
            "a smaller penalty is lost in the rounding of float64."
        )
    if value > LARGEST_ALPHA:
        raise InputError(
            f"{what} must be at most {LARGEST_ALPHA:g}, but got {value:g}; it leaves nothing but the mean."
        )
    return value


def check_alphas(alphas: object, what: str = "alpha_range") -> list[float]:
    """Ridge penalties to choose from, ascending and each once.

    Raises:
        InputError: not a list, empty, or an entry `check_alpha` refuses.
    """
    if not is_list(alphas):
        raise InputError(f"{what} must be a list of numbers, but got {type(alphas).__name__}: {shown(alphas)}.")
    values = sorted({check_alpha(alpha, f"{what}[{i}]") for i, alpha in enumerate(alphas)})
    if not values:
        raise InputError(f"{what} is empty; give at least one penalty, for instance [0.1, 1.0, 10.0].")
    return values


def check_count(count: object, what: str, at_least: int) -> int:
    """A whole number of at least `at_least`.

    Raises:
        InputError: not a whole number, too small, or of more than a hundred digits.
    """
    if isinstance(count, bool | np.bool_) or not isinstance(count, Integral) or count < at_least:
        raise InputError(f"{what} must be a whole number of at least {at_least}, but got {shown(count)}.")
    if int(count) > LARGEST_COUNT:
        raise InputError(f"{what} must be at most {LARGEST_COUNT:g}, but got {shown(count)}.")
    return int(count)


def check_positive(number: object, what: str) -> float:
    """A finite number above 0.

    Raises:
        InputError: not a number, not finite, or not above 0.
    """
    value = check_number(number, what)
    if value <= 0:
        raise InputError(f"{what} must be above 0, but got {value:g}.")
    return value


def check_fraction(fraction: object, what: str) -> float:
    """A fraction in [0, 1).

    Raises:
        InputError: not a number in [0, 1).
    """
    value = check_number(fraction, what)
    if not 0 <= value < 1:
        raise InputError(f"{what} must be at least 0 and below 1, but got {value:g}.")
    return value


def check_groups(groups: object, n_texts: int) -> list[Any]:
    """One hashable group a text.

    Raises:
        InputError: not a list, the wrong count, a group that is missing or cannot be compared, or fewer than two.
    """
    if isinstance(groups, set | frozenset | Mapping) or not is_list(groups):
        raise InputError(f"groups must be a list with one entry a text, but got {type(groups).__name__}.")
    entries = [entry.item() if isinstance(entry, np.generic) else entry for entry in groups]
    if len(entries) != n_texts:
        raise InputError(f"groups has {len(entries)} entries but there are {n_texts} texts; give one group a text.")
    for row, entry in enumerate(entries):
        if any(map(is_missing, entry)) if isinstance(entry, tuple) else is_missing(entry):
            raise InputError(
                f"groups[{row}] is {entry}; every text needs a group, and texts without one are not alike."
            )
    try:
        n_groups = len(set(entries))
    except TypeError as error:
        raise InputError(
            f"groups must hold what can be compared, strings, numbers or tuples of them: {error}."
        ) from None
    if n_groups < 2:
        raise InputError("groups puts every text into one group; at least two groups are needed to hold one out.")
    return entries


def check_vectors(vectors: object, n_texts: int, model: str) -> NDArray[np.float32]:
    """What an embedding model gave for `n_texts` texts, as (n_texts, d) float32.

    Raises:
        EmbeddingError: ragged rows, the wrong count or shape, no columns, NaN or infinity, a zero vector.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            array = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EmbeddingError(
            f"{model} gave something that is not a table of numbers ({error}); "
            "it must give one vector a text, all of one length."
        ) from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise EmbeddingError(f"{model} gave an array of shape {array.shape}; it must be ({n_texts}, d) with d > 0.")
    if len(array) != n_texts:
        raise EmbeddingError(f"{model} gave {len(array)} vectors for {n_texts} texts; it must give one a text.")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise EmbeddingError(f"{model} gave NaN or infinity for text {int(np.argmin(finite))} of a batch of {n_texts}.")
    nonzero = array.any(axis=1)
    if not nonzero.all():
        raise EmbeddingError(
            f"{model} gave a vector of zeros for text {int(np.argmin(nonzero))} of a batch of {n_texts}; "
            "a zero vector has no direction to value."
        )
    return array


def check_table(columns: object, n_texts: int, what: str) -> NDArray[np.float32]:
    """What a block of features gave for `n_texts` texts, as (n_texts, k) float32; (n_texts,) is one column.

    Raises:
        FeatureError: no table of numbers, the wrong count, no columns, NaN or infinity.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            array = np.asarray(columns, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FeatureError(f"{what} gave something that is not a table of numbers ({error}).") from None
    shape = array.shape
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != n_texts or array.shape[1] == 0:
        raise FeatureError(f"{what} gave an array of shape {shape}; it must be ({n_texts}, k) with k > 0.")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise FeatureError(f"{what} gave NaN or infinity for text {int(np.argmin(finite))} of {n_texts}.")
    return array


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
