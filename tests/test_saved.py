"""Files of every schema so far are read, with equal values."""

import hashlib
import json
import pickle

import dspy
import numpy as np
import pytest

from dspy_qvl import Qwen3EmbeddingValueLearner
from dspy_qvl.state import sealed
from tests.conftest import CountingModel, rated
from tests.saved.write import HERE, TEXTS, Program, values

SCHEMAS = sorted(path.name.removesuffix(".qvl") for path in HERE.glob("schema_?.qvl"))


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


def eight_random_columns(texts):
    """The embedding model of `schema_4_words_beside.qvl`."""
    seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts]
    return np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds], dtype=np.float32)


eight_random_columns.name = "tests/eight random columns"


# Up to schema 4 hashed words were a dense block of 8,192 columns, and the lexical model learned from its vectors.
@pytest.mark.parametrize(
    ("name", "settings", "blocks"),
    [
        ("words_beside", {"embedder": eight_random_columns}, ("embedding", "lexical-8192", "length")),
        ("words_alone", {}, ("embedding", "length")),
    ],
)
def test_hashed_words_of_schema_4_keep_their_columns_and_values(name, settings, blocks, tmp_path):
    learner = Qwen3EmbeddingValueLearner(cache_dir=None, **settings)
    learner.load_model(HERE / f"schema_4_{name}.qvl")
    wanted = json.loads((HERE / "schema_4_words.values.json").read_text(encoding="utf-8"))[name]
    assert learner.ridge.fitted.blocks == blocks
    for _ in range(2):
        assert learner.predict_many(TEXTS).tolist() == close(wanted["value"])
        assert [learner.predict_std(text) for text in TEXTS] == close(wanted["std"])
        learner.save_model(tmp_path / "anew.qvl")  # as schema 5
        learner = Qwen3EmbeddingValueLearner(cache_dir=None, **settings)
        learner.load_model(tmp_path / "anew.qvl")
    learner.update("leaking and noisy", 0.5)
    assert learner.ridge.fitted.blocks == blocks
    learner.train()
    assert learner.ridge.fitted.blocks[0] == ("embedding" if settings else "lexical")
    assert "lexical-8192" not in learner.ridge.fitted.blocks


def test_a_file_with_sparse_words_gives_equal_values(tmp_path):
    learner = Qwen3EmbeddingValueLearner(cache_dir=tmp_path)
    learner.load_model(HERE / "schema_5_words.qvl")
    wanted = json.loads((HERE / "schema_5_words.values.json").read_text(encoding="utf-8"))["words"]
    assert learner.ridge.fitted.fitted.frequencies.power == 0.5
    assert learner.predict_many(TEXTS).tolist() == close(wanted["value"])
    assert learner.predict_std_many(TEXTS).tolist() == close(wanted["std"])
    learner.update("leaking and noisy", 0.5)
    assert learner.ridge.fitted.blocks == ("lexical", "length")


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
