"""The order of packages and modules: each imports only what stands before it, and nothing reaches into a package."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspy_qvl

PACKAGE = Path(dspy_qvl.__file__).parent
ROOT = PACKAGE.parent
LONGEST_FILE = 420  # lines

# What each package holds, from the ground up: a module imports only from what stands before it.
ORDER = {
    "dspy_qvl": "errors vectors measures plots state text ridge embedding features fitting certainty learner reranker "
    "metric comparison optimizer",
    "dspy_qvl.state": "bounded_json drafts entries fields files",
    "dspy_qvl.text": "quoting field_values metadata ratings reading rendering",
    "dspy_qvl.ridge": "moments line solve primal dual krylov regression kept_rows kernel_updates updates across bounds "
    "projected posterior groups weigher banded",
    "dspy_qvl.embedding": "loops instruction probe truncation tables cache models embedder callers batching source "
    "encoder embedding",
    "dspy_qvl.embedding.cache": "memory rows database connections sqlite_store store pruning exporting cache",
    "dspy_qvl.embedding.models": "model words hashing lexical stored_vectors precomputed hosted local static "
    "custom spec",
    "dspy_qvl.embedding.models.hosted": "providers addresses arguments redaction exchange failures request "
    "halving hosted",
    "dspy_qvl.embedding.models.local": "precision folder pooling loading forward long_text local",
    "dspy_qvl.embedding.models.static": "recognition table files doors static",
    "dspy_qvl.features": "table packing overlap built_in features",
    "dspy_qvl.fitting": "folds permutation frequencies tuning baselines validation",
    "dspy_qvl.certainty": "intervals suspicion influences means suggestion support drift verdict picking",
    "dspy_qvl.certainty.means": "sample powered results honest",
    "dspy_qvl.certainty.support": "nearest pairs wording support",
    "dspy_qvl.certainty.verdict": "estimate rated_rows comparison length curve verdict examination",
    "dspy_qvl.certainty.picking": "expected luck report shares",
    "dspy_qvl.learner": "memo vectorizer groups fit learned columns_state fit_state columns head updating training_set "
    "neighbors supporting inspection choosing diagnosis migration saving value_function examined trainable learner",
    "dspy_qvl.reranker": "passages judged sketch ranking head columns learning reranker",
    "dspy_qvl.metric": "scale judgement feedback log_file calls items objectives reward agreement filter scores metric",
    "dspy_qvl.comparison": "sheet comparison",
    "dspy_qvl.optimizer": "modules readers optimizer",
}
# Narrower than the order: all that these may import of the package.
ONLY = {
    "errors": set(),
    "vectors": set(),
    "measures": {"errors", "vectors"},
    "plots": {"errors"},
    "state": {"errors"},
    "text": {"errors"},
    "ridge": {"errors", "vectors"},
    "fitting": {"errors", "vectors", "measures", "ridge", "features"},
    "certainty": {"errors", "vectors", "measures", "ridge", "features", "fitting"},
    "features": {"errors", "vectors", "embedding"},
    "embedding": {"errors", "vectors", "state", "text"},
}
WITHOUT_DSPY = ("errors", "vectors", "measures", "plots", "state", "ridge", "fitting", "features", "certainty")


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, a package by the name of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file; of `from package import module` the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def parent(name: str) -> str:
    return name.rpartition(".")[0]


def face_of(target: str, module: str) -> str:
    """The package or module through which `module` may reach `target`: the first one that is not around itself."""
    around, path = [*module.split("."), ""], target.split(".")
    same = next((depth for depth, part in enumerate(path) if part != around[depth]), len(path) - 1)
    return ".".join(path[: same + 1])


def test_the_order_names_every_module_of_every_package():
    for package, order in ORDER.items():
        assert sorted(order.split()) == sorted(
            name.rpartition(".")[2] for name in MODULES if name != package and parent(name) == package
        )
    assert set(ORDER) == {name for name in MODULES if (ROOT / name.replace(".", "/")).is_dir()}


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(ORDER)))
def test_a_module_imports_only_what_stands_before_it(module):
    for target in imports(MODULES[module]):
        if target.split(".")[0] != "dspy_qvl":
            continue
        face = face_of(target, module)
        assert target == face, f"{module} reaches past {face} for {target}"
        package = parent(face)
        order = ORDER[package].split()
        own = module.removeprefix(f"{package}.").split(".")[0]
        assert order.index(face.rpartition(".")[2]) < order.index(own), f"{module} imports {target}, which stands above"


@pytest.mark.parametrize("package", sorted(ORDER))
def test_a_package_hands_out_only_what_it_holds(package):
    assert all(parent(target) == package for target in imports(MODULES[package]))


@pytest.mark.parametrize("place", sorted(ONLY))
def test_the_ground_packages_know_only_what_they_need(place):
    for module, tree in MODULES.items():
        if module.split(".")[1:2] == [place]:
            used = {target.split(".")[1] for target in imports(tree) if target.startswith("dspy_qvl.")}
            assert used <= ONLY[place] | {place}, module


@pytest.mark.parametrize("place", WITHOUT_DSPY)
def test_what_needs_no_dspy_does_not_know_it(place):
    for module, tree in MODULES.items():
        if module.split(".")[1:2] == [place]:
            assert not any(target.split(".")[0] == "dspy" for target in imports(tree)), module


@pytest.mark.parametrize("path", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("examples/*.py"))])
def test_readme_and_examples_import_what_is_handed_out(path):
    for target in re.findall(r"(?:from|import) (dspy_qvl[.\w]*)", (ROOT / path).read_text()):
        assert target in ("dspy_qvl", *(f"dspy_qvl.{name}" for name in ORDER["dspy_qvl"].split()))


def test_the_notebooks_import_what_is_handed_out():
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        source = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        for target in re.findall(r"(?:from|import) (dspy_qvl[.\w]*)", source):
            assert target in ("dspy_qvl", *(f"dspy_qvl.{name}" for name in ORDER["dspy_qvl"].split()))


def test_no_file_is_longer_than_one_thing_needs():
    assert not [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > LONGEST_FILE]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_docstring_says_what_a_thing_is_or_does(module):
    places = [
        node
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    first_words = [(ast.get_docstring(place) or "x").split()[0] for place in places]
    assert not {"What", "Whether", "Which", "Of"} & set(first_words)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_pickles_or_prints(module):
    assert not {"pickle", "cloudpickle", "marshal", "shelve"} & set(imports(MODULES[module]))
    calls = {
        node.func.id
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not {"print", "eval", "exec"} & calls


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
        "compare",
    ]
    assert all(hasattr(dspy_qvl, name) for name in dspy_qvl.__all__)
