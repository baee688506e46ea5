"""The rooms of the package, from the ground up: each imports only rooms named before it."""

import ast
from pathlib import Path

import pytest

import dspy_qvl

PACKAGE = Path(dspy_qvl.__file__).parent

# A room may import any room before it, unless it is listed with the only ones it may.
FLOORS = [
    "errors",
    "drafts",
    "quoting",
    "metadata",
    "folds",
    "scores",
    "plots",
    "moments",
    "linear",
    "solve",
    "primal",
    "dual",
    "ridge",
    "recursive",
    "bounds",
    "uncertainty",
    "permutation",
    "ranking",
    "sketch",
    "weighting",
    "vectors",
    "sharing",
    "bounded_json",
    "state",
    "store",
    "upkeep",
    "transfer",
    "cache",
    "callers",
    "coalescing",
    "loops",
    "lexical",
    "precomputed",
    "addresses",
    "arguments",
    "redaction",
    "exchange",
    "failures",
    "provider",
    "halving",
    "hosted",
    "loading",
    "passes",
    "windows",
    "local",
    "model_folder",
    "features",
    "typed",
    "text",
    "backend",
    "embedders",
    "backends",
    "model",
    "source",
    "embedding",
    "tuning",
    "validation",
    "vectorizer",
    "fit",
    "learned",
    "head",
    "scale",
    "inspection",
    "migration",
    "values",
    "learner",
    "judged",
    "ranking_head",
    "reranker",
    "judge",
    "feedback",
    "reward",
    "examples",
    "agreement",
    "metric",
    "modules",
    "lessons",
    "optimizer",
]
ONLY = {
    "errors": set(),
    "drafts": set(),
    "quoting": set(),
    "metadata": {"errors"},
    "scores": {"errors", "folds"},
    "plots": {"errors"},
    "folds": {"errors"},
    "moments": {"errors"},
    "solve": {"errors", "moments"},
    "linear": {"moments"},
    "primal": {"moments", "solve", "linear"},
    "dual": {"moments", "solve", "linear"},
    "ridge": {"moments", "linear", "primal", "dual"},
    "recursive": {"moments", "linear"},
    "bounds": {"moments"},
    "uncertainty": {"moments", "linear", "solve", "primal", "dual", "bounds"},
    "permutation": {"folds", "moments", "ridge"},
    "ranking": {"scores", "moments", "solve"},
    "sketch": set(),
    "weighting": {"moments"},
    "vectors": {"errors", "moments", "linear"},
    "sharing": set(),
    "scale": {"errors"},
    "bounded_json": {"errors"},
    "state": {"errors", "drafts", "bounded_json"},
    "store": {"errors", "drafts"},
    "upkeep": {"errors", "store"},
    "transfer": {"errors", "drafts", "state", "store", "upkeep"},
    "cache": {"errors", "moments", "vectors", "store", "upkeep", "transfer"},
    "callers": set(),
    "coalescing": {"callers"},
    "loops": set(),
    "lexical": {"errors"},
    "precomputed": {"errors", "moments", "vectors"},
    "addresses": set(),
    "arguments": {"errors", "metadata", "addresses"},
    "redaction": set(),
    "exchange": set(),
    "failures": {"redaction", "exchange"},
    "provider": {"errors", "addresses", "arguments", "redaction", "exchange", "failures"},
    "halving": {"errors", "failures", "provider"},
    "hosted": {"errors", "loops", "addresses", "arguments", "failures", "provider", "halving"},
    "loading": {"errors"},
    "passes": {"errors", "loading"},
    "windows": {"errors", "passes"},
    "local": {"errors", "loading", "passes", "windows"},
    "model_folder": {"errors"},
    "features": {"errors", "moments", "linear", "cache", "loops", "lexical"},
    "tuning": {"ridge", "moments", "features", "weighting"},
    "validation": {"errors", "scores", "folds", "moments", "permutation", "ridge", "features", "tuning"},
}
NO_DSPY = set(ONLY)


def imports(room: str) -> set[str]:
    """Every module a room imports anywhere in its file, siblings by their bare name."""
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} has a relative import"
            assert node.module is not None
            if node.module == "dspy_qvl":
                found |= {f"dspy_qvl.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def test_every_room_has_its_floor():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_rooms_below_it(room):
    siblings = {name.removeprefix("dspy_qvl.") for name in imports(room) if name.startswith("dspy_qvl")}
    allowed = ONLY.get(room, set(FLOORS[: FLOORS.index(room)]))
    assert siblings <= allowed


@pytest.mark.parametrize("room", sorted(NO_DSPY))
def test_the_ground_floor_knows_nothing_of_dspy(room):
    assert not any(name.split(".")[0] == "dspy" for name in imports(room))


def test_no_room_pickles_or_prints():
    for room in FLOORS:
        source = (PACKAGE / f"{room}.py").read_text()
        assert not {"pickle", "cloudpickle", "marshal", "shelve"} & imports(room)
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not {"print", "eval", "exec"} & calls, room


def test_the_public_names_are_these():
    assert dspy_qvl.__all__ == [
        "EmbeddingError",
        "FeatureError",
        "FitValue",
        "InputError",
        "MissingTextError",
        "ModelUnavailableError",
        "NotFittedError",
        "Precomputed",
        "QVLError",
        "QVLWarning",
        "Qwen3EmbeddingValueLearner",
        "RankedPassage",
        "RankingExample",
        "Reranker",
        "RidgeHead",
        "StateError",
        "TextsRefusedError",
        "ValueMetric",
    ]
    assert all(hasattr(dspy_qvl, name) for name in dspy_qvl.__all__)
