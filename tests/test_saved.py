"""Files of every schema so far are read, with equal values."""

import json
import pickle

import dspy
import pytest

from dspy_qvl import Qwen3EmbeddingValueLearner
from dspy_qvl.state import sealed
from tests.conftest import CountingModel, rated
from tests.saved.write import HERE, TEXTS, Program, values

SCHEMAS = sorted(path.name.removesuffix(".qvl") for path in HERE.glob("schema_*.qvl"))


def expected(schema: str) -> dict:
    return json.loads((HERE / f"{schema}.values.json").read_text(encoding="utf-8"))


def numbers(figures: list[str]) -> list[float]:
    return [float.fromhex(figure) for figure in figures]


def close(figures: list[str]):
    """Equal but for the last bits, in which processors differ."""
    return pytest.approx(numbers(figures), rel=1e-12)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_program_saved_with_any_schema_gives_equal_values(schema, tmp_path):
    program = Program(tmp_path)
    program.load(HERE / f"{schema}.json")
    found, wanted = values(program), expected(schema)
    assert found.keys() == wanted.keys()
    for name, figures in found.items():
        assert numbers(figures) == close(wanted[name]), name


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_file_saved_with_any_schema_gives_equal_values(schema, tmp_path):
    learner = Qwen3EmbeddingValueLearner(cache_dir=tmp_path)
    learner.load_model(HERE / f"{schema}.qvl")
    assert learner.predict_many(TEXTS).tolist() == close(expected(schema)["value"])
    assert [learner.predict_std(text) for text in TEXTS] == close(expected(schema)["std"])


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_file_saved_with_any_schema_can_be_learned_on_and_saved_anew(schema, tmp_path):
    learner = Qwen3EmbeddingValueLearner(cache_dir=tmp_path)
    learner.load_model(HERE / f"{schema}.qvl")
    learner.update("leaking and noisy", 0.5)
    learner.save_model(tmp_path / "anew.qvl")
    again = Qwen3EmbeddingValueLearner(cache_dir=tmp_path)
    again.load_model(tmp_path / "anew.qvl")
    assert again.predict_many(TEXTS).tobytes() == learner.predict_many(TEXTS).tobytes()
    assert isinstance(again(text=TEXTS[0]), dspy.Prediction)


def test_a_pickled_state_names_the_class_where_every_version_finds_it():
    assert pickle.loads(pickle.dumps(sealed({"a": 1}, "one entry"))) == sealed({"a": 1}, "one entry")
    assert pickle.dumps(sealed({"a": 1}, "one entry"), protocol=0).startswith(b"cdspy_qvl.state\nSealed")


def test_a_file_saved_before_any_text_was_valued_knows_its_columns(tmp_path):
    trained = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None, features=None)
    trained.add_training_examples(rated(20))
    trained.train()
    trained.save(tmp_path / "state.json")
    loaded = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None, features=None)
    loaded.load(tmp_path / "state.json")
    loaded.save_model(tmp_path / "value.qvl")
    again = Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None, features=None)
    again.load_model(tmp_path / "value.qvl")
    assert again.predict_many(TEXTS).tobytes() == trained.predict_many(TEXTS).tobytes()
