"""Finds the modules of a program that are to be fitted, by the names DSPy gives them, and copies programs."""

import copy
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import dspy

from dspy_qvl.errors import InputError, is_list, shown
from dspy_qvl.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.reranker import Reranker

Which = list[str] | Callable[[str, dspy.Module], bool] | None
M = TypeVar("M", bound=dspy.Module)

EVERY = "*"


def check_which(which: object) -> Which:
    """The names of modules as a list, a callable that chooses them, or None.

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


def modules_to_fit(program: dspy.Module, kind: type[M], which: Which) -> dict[str, M]:
    """The modules of one kind that are to be fitted, by their names in `program.named_sub_modules`.

    Args:
        program: the program; it may be such a module itself, by the name of "self".
        kind: the class of the modules.
        which: names, as `named_sub_modules` or `named_parameters` spell them ("self.tone", "tone", "values[0]",
            "values['tone']"), "*" for all; a callable (name, module) -> bool; or None where only one can be meant: a
            learner that is only lent to a reranker is not, unless there is no other.

    Raises:
        InputError: there is none, there are several and none is named, or a name is no such module's.
    """
    found: dict[str, M] = dict(program.named_sub_modules(kind))
    if not found:
        raise InputError(
            f"{type(program).__name__} has no {kind.__name__} in it, so there is nothing to fit"
            f"{' with passages=' if kind is Reranker else ''}; make one an attribute of the program."
        )
    if which is None:
        apart = _outside_rerankers(program, set())
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
    """The one of the found modules that stands at a name; a module in several places has a name for each.

    Raises:
        InputError: there is none.
    """
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
    """The object at a name such as "rerank.learner", "values[0]" or "values['tone']"; None where there is none."""
    part: Any = program
    for attribute, key in re.findall(r"([^.\[\]]+)|\[([^\[\]]*)\]", re.sub(r"^self(\.|(?=\[)|$)", "", name)):
        if attribute:
            part = getattr(part, "__dict__", {}).get(attribute)
        elif isinstance(part, dict):
            part = next((value for known, value in part.items() if str(known) == key.strip("'\"")), None)
        else:
            part = dict(enumerate(part)).get(int(key)) if isinstance(part, list | tuple) and key.isdigit() else None
    return part


def _outside_rerankers(part: Any, seen: set[int]) -> set[int]:
    """The ids of a program and of everything in it, but for what is inside rerankers, added to those seen before."""
    if id(part) not in seen:
        seen.add(id(part))
        inside: Collection[Any] = part if isinstance(part, list | tuple) else ()
        if isinstance(part, dict):
            inside = part.values()
        elif isinstance(part, dspy.Module) and not isinstance(part, Reranker):
            inside = vars(part).values()
        for one in inside:
            _outside_rerankers(one, seen)
    return seen


def copy_program(program: M) -> M:
    """A copy of a program; an object that stands in several places of it is one object in the copy, too.

    Where a part cannot be copied (a retriever with a thread), `Module.deepcopy` copies attribute by attribute, and a
    learner that a metric and a reranker share becomes two. Here that part is shared with the copy, and the rest copied.
    """
    # DSPy prints an error when a failed copy of a retriever is thrown away, so none is made.
    memo = {id(part): part for _, part in program.named_sub_modules(dspy.retrievers.Embeddings)}
    twin: M = _copied(program, memo)
    return twin


def _copied(part: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of a part of a program, or the part itself where it cannot be copied; `memo` as in `deepcopy`."""
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
    """A name without the "self." that DSPy puts before it."""
    return name.removeprefix("self.")


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(_short(name)) for name in names)
