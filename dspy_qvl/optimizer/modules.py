"""Which modules of a program are meant, by the names that DSPy gives them."""

import copy
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import dspy

from dspy_qvl.errors import InputError, is_list, shown
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.reranker import Reranker

Which = list[str] | Callable[[str, dspy.Module], bool] | None
M = TypeVar("M", bound=dspy.Module)

EVERY = "*"


def check_which(which: object) -> Which:
    """Names of modules, what chooses them, or None.

    Raises:
        InputError: anything else, or no name at all.
    """
    if which is None or callable(which):
        return which
    names = [which] if isinstance(which, str) else list(which) if is_list(which) else []
    if not names or isinstance(which, bytes | Mapping) or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"learner must be the name of a module in the program, a list of names, {EVERY!r} for all, or a callable "
            f"(name, module) -> bool, but got {shown(which)}."
        )
    return names


def meant(program: dspy.Module, kind: type[M], which: Which) -> dict[str, M]:
    """The modules of one kind that are meant, by their names in `program.named_sub_modules`.

    Args:
        program: the program; it may be such a module itself, by the name of "self".
        kind: of the modules.
        which: names, as `named_sub_modules` or `named_parameters` spell them ("self.tone", "tone", "values[0]",
            "values['tone']"), "*" for all; a callable (name, module) -> bool; or None where only one can be meant: a
            learner that is but lent to a reranker is not, unless there is no other.

    Raises:
        InputError: there is none, it is not said which of several, or a name is no such module's.
    """
    found: dict[str, M] = dict(program.named_sub_modules(kind))
    if not found:
        raise InputError(
            f"{type(program).__name__} has no {kind.__name__} in it, so there is nothing to fit"
            f"{' with passages=' if kind is Reranker else ''}; make one an attribute of the program."
        )
    if which is None:
        apart = {id(part) for part in _parts(program, not_through=Reranker)}
        found = {name: module for name, module in found.items() if id(module) in apart} or found
        if len(found) > 1:
            raise InputError(
                f"{type(program).__name__} has several of {kind.__name__}: {_listed(found)}. Say which is meant with "
                f"learner={_short(next(iter(found)))!r}, several with a list of names, each with its own ratings with "
                f"learner={{name: {{'score': …}}, …}}, all with learner={EVERY!r}."
            )
        return found
    if callable(which):
        try:
            chosen = {name: module for name, module in found.items() if which(name, module)}
        except Exception as error:
            raise InputError(
                f"learner must be a callable (name, module) -> bool, but it failed: {type(error).__name__}: {error}"
            ) from error
        if not chosen:
            raise InputError(f"learner is a callable that chose none of {_listed(found)}.")
        return chosen
    named = {id(_named(program, found, name)) for name in which if name != EVERY}
    return {name: module for name, module in found.items() if EVERY in which or id(module) in named}


def _named(program: dspy.Module, found: Mapping[str, M], name: str) -> M:
    """The one of the found modules that a name means; whatever way leads to it."""
    module: Any = found.get(name, _at(program, name))
    for one in found.values():
        if module is one:
            return one
    kind = type(next(iter(found.values()))).__name__
    instead = f"a {type(module).__name__}" if isinstance(module, dspy.Module) else "no module"
    hint = ""
    if isinstance(module, Reranker):
        hint = " A reranker is fitted from judged passages: say which field holds them with passages=."
    elif isinstance(module, Qwen3EmbeddingValueLearner):
        hint = " A value function is fitted from rated texts: leave out passages=."
    raise InputError(
        f"learner={name!r} names {instead} of {type(program).__name__}; of {kind} it has {_listed(found)}.{hint}"
    )


def _at(program: dspy.Module, name: str) -> Any:
    """What stands at a name such as "rerank.learner", "values[0]" or "values['tone']"; None where nothing does."""
    part: Any = program
    for attribute, key in re.findall(r"([^.\[\]]+)|\[([^\[\]]*)\]", re.sub(r"^self(\.|(?=\[)|$)", "", name)):
        if attribute:
            part = getattr(part, "__dict__", {}).get(attribute)
        elif isinstance(part, dict):
            part = next((value for known, value in part.items() if str(known) == key.strip("'\"")), None)
        else:
            part = dict(enumerate(part)).get(int(key)) if isinstance(part, list | tuple) and key.isdigit() else None
    return part


def _parts(program: dspy.Module, not_through: tuple[type, ...] | type = ()) -> Iterator[Any]:
    """Every object that `named_sub_modules` looks at, but for what is inside modules of the given type."""
    queue, seen = deque([program]), {id(program)}
    while queue:
        part: Any = queue.popleft()
        yield part
        inside: Collection[Any] = ()
        if isinstance(part, dspy.Module) and not isinstance(part, not_through):
            inside = vars(part).values()
        elif isinstance(part, list | tuple | dict):
            inside = part.values() if isinstance(part, dict) else part
        for one in inside:
            if id(one) not in seen:
                seen.add(id(one))
                queue.append(one)


def copied(program: M) -> M:
    """A copy of a program in which what was one object is one object still.

    Where a part cannot be copied (a retriever with a thread), `Module.deepcopy` copies attribute by attribute, and a
    learner that a metric and a reranker share becomes two. Here that part is shared with the copy, and the rest copied.
    """
    # Told beforehand, since a copy of it that fails prints an error of DSPy's when it is thrown away.
    memo = {id(part): part for part in _parts(program) if isinstance(part, dspy.retrievers.Embeddings)}
    twin: M = _copied(program, memo)
    return twin


def _copied(part: Any, memo: dict[int, Any]) -> Any:
    tried = dict(memo)  # what a failed copy leaves behind is not whole
    try:
        twin = copy.deepcopy(part, tried)
    except Exception:
        if isinstance(part, dspy.Module):
            twin = memo[id(part)] = object.__new__(type(part))
            twin.__dict__.update({name: _copied(value, memo) for name, value in vars(part).items()})
            return twin
        if isinstance(part, dict):
            return {name: _copied(value, memo) for name, value in part.items()}
        return [_copied(value, memo) for value in part] if isinstance(part, list) else part
    memo.update(tried)
    return twin


def _short(name: str) -> str:
    return name.removeprefix("self.")


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(_short(name)) for name in names)
