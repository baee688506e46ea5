"""Saved, loaded, copied, reset: the same value function, and no other model's."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import dspy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_qvl import InputError, QVLWarning, Qwen3EmbeddingValueLearner, Reranker, RidgeHead, StateError
from dspy_qvl.reranker.judged import JudgedQuery
from dspy_qvl.state.entries import SCHEMA, decode_array, encode_array
from dspy_qvl.state.files import write_file
from tests.conftest import CountingModel, rated

NEW = [text for text, _ in rated(20, seed=8)]


def make(tmp_path, model=None, **given_settings):
    if model is not None:
        given_settings["embedder"] = model
    elif "model_name" not in given_settings:
        given_settings["model_name"] = "lexical"
    return Qwen3EmbeddingValueLearner(cache_dir=tmp_path / "cache", **given_settings)


@pytest.mark.parametrize("name", ["model.pkl", "model", "a/new/folder/model.qvl"])
def test_a_saved_file_of_any_suffix_gives_the_same_bits(trained, tmp_path, name):
    trained.save_model(tmp_path / name)
    loaded = Qwen3EmbeddingValueLearner()
    loaded.load_model(tmp_path / name)
    assert loaded.predict_many(NEW).tobytes() == trained.predict_many(NEW).tobytes()
    assert (loaded.model_name, loaded.embedding_dim) == ("lexical", 512)
    assert loaded.training_texts == trained.training_texts
    assert loaded.training_scores == trained.training_scores


def test_a_fresh_process_gives_the_same_bits(trained, tmp_path):
    trained.save_model(tmp_path / "m")
    code = (
        "import sys, json, dspy_qvl\n"
        "learner = dspy_qvl.Qwen3EmbeddingValueLearner()\n"
        "learner.load_model(sys.argv[1])\n"
        "print(json.dumps([learner.predict(text) for text in json.loads(sys.argv[2])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m", json.dumps(NEW)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == trained.predict_many(NEW).tolist()


def test_metadata_and_the_chosen_alpha_come_back(tmp_path):
    learner = make(tmp_path)
    for number, (text, score) in enumerate(rated(30)):
        learner.add_training_example(text, score, {"by": "me", "n": number} if number % 2 else None)
    learner.optimize_hyperparameters([0.5])
    learner.save_model(tmp_path / "m")
    loaded = make(tmp_path)
    loaded.load_model(tmp_path / "m")
    assert loaded.training_metadata == learner.training_metadata
    assert loaded.ridge_alpha == learner.ridge_alpha == 0.5
    assert loaded.train() == learner.train()
    assert loaded.train()["alpha_saw_validation"]


def test_a_loaded_learner_goes_on_learning_without_embedding_again(tmp_path):
    learner = make(tmp_path, CountingModel(), embedding_dim=32)
    learner.add_training_examples(rated(40))
    learner.train()
    learner.save_model(tmp_path / "m")
    model = CountingModel()
    elsewhere = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path / "another machine")
    elsewhere.load_model(tmp_path / "m")
    assert elsewhere.embedding_dim == 32
    assert elsewhere.predict(learner.training_texts[3]) == learner.predict(learner.training_texts[3])
    elsewhere.train()
    assert set(model.asked).isdisjoint(learner.training_texts)
    assert elsewhere.ridge.coef_.tobytes() == learner.ridge.coef_.tobytes()
    assert elsewhere.embedding_cache.info().rows <= 3  # a file's vectors never reach the shared cache: only probes


def test_settings_left_at_their_defaults_are_adopted_and_given_ones_must_match(trained, tmp_path):
    trained.save_model(tmp_path / "m")
    for given_settings, message in [
        ({"embedding_dim": 768}, "saved with embedding_dim=512, but this learner was made with 768"),
        ({"instruction": "Judge"}, "saved with instruction=None, but this learner was made with 'Judge'"),
        ({"ridge_alpha": 3.0}, "saved with ridge_alpha=1.0, but this learner was made with 3.0"),
        ({"model_name": "Qwen/Qwen3-Embedding-0.6B", "embedding_dim": 512}, "another embedding model"),
        ({"model": CountingModel()}, "another embedding model"),
    ]:
        learner = make(tmp_path, **given_settings)
        with pytest.raises(StateError, match=message):
            learner.load_model(tmp_path / "m")
    same = make(tmp_path, embedding_dim=512)
    same.load_model(tmp_path / "m")


def test_the_constructors_alpha_is_compared_not_the_chosen_one(tmp_path):
    learner = make(tmp_path, ridge_alpha=10.0)
    learner.add_training_examples(rated(40))
    learner.optimize_hyperparameters([0.5])
    learner.save_model(tmp_path / "m")
    again = make(tmp_path, ridge_alpha=10.0)
    again.load_model(tmp_path / "m")
    assert again.ridge_alpha == 0.5
    fresh = make(tmp_path)
    fresh.load_model(tmp_path / "m")
    fresh.save_model(tmp_path / "n")
    again.load_model(tmp_path / "n")


def test_a_refused_file_leaves_the_learner_as_it_was(trained, tmp_path):
    before = trained.predict_many(NEW).tobytes()
    other = make(tmp_path, CountingModel())
    other.add_training_examples(rated(10))
    other.train()
    other.save_model(tmp_path / "other")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"head": 1}))
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    trained.save_model(tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    (tmp_path / "cut").write_bytes(good[:-100])
    (tmp_path / "longer").write_bytes(good + b" ")
    (tmp_path / "future").write_bytes(good.replace(b"dspy_qvl 6 ", b"dspy_qvl 9 ", 1))
    for name, error, message in [
        ("pickle", StateError, "is a pickle; dspy_qvl never loads pickles"),
        ("text", StateError, "was not written by save_model"),
        ("empty", StateError, "was not written by save_model"),
        ("cut", StateError, "is truncated or was altered"),
        ("longer", StateError, "is truncated or was altered"),
        ("future", StateError, "has schema 9, this version of dspy_qvl reads schemas 3 to 6"),
        ("other", StateError, "saved with embedding_dim=64, but this learner was made with 512"),
        ("absent", InputError, "cannot be read"),
        ("", InputError, "cannot be read"),
    ]:
        with pytest.raises(error, match=message):
            trained.load_model(tmp_path / name)
        assert trained.predict_many(NEW).tobytes() == before
        assert len(trained.training_texts) == 60


def small_file(folder: Path) -> bytes:
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=8), cache_dir=folder / "cache")
    learner.add_training_examples([(text, score, {"n": row}) for row, (text, score) in enumerate(rated(6))])
    learner.train(cv_folds=2)
    learner.save_model(folder / "good")
    return (folder / "good").read_bytes()


def test_ten_thousand_random_mutations_of_a_file_are_refused_and_change_nothing(tmp_path):
    good = small_file(tmp_path)
    rng = random.Random(0)
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=8), cache_dir=tmp_path / "cache")
    learner.load_model(tmp_path / "good")
    before = (learner.predict(NEW[0]), learner.training_texts, learner.ridge, learner._embedding)
    bad = tmp_path / "bad"
    for _ in range(10_000):
        raw = bytearray(good)
        kind = rng.randrange(4)
        at = rng.randrange(len(raw))
        if kind == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del raw[at : at + rng.randrange(1, 200)]
        elif kind == 2:
            raw[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            raw[at : at + 8] = rng.randbytes(8)
        if bytes(raw) == good:
            continue
        bad.write_bytes(raw)
        with pytest.raises(StateError, match=r"altered|not written|schema|pickle"):
            learner.load_model(bad)
    assert (learner.predict(NEW[0]), learner.training_texts, learner.ridge, learner._embedding) == before


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths(node, here=()):
    """Every place in a JSON tree."""
    yield here
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    for key, child in children:
        yield from paths(child, (*here, key))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_forged_with_a_right_checksum_is_refused_or_harmless(tmp_path, data):
    good = tmp_path / "good"
    if not good.exists():
        small_file(tmp_path)
    content = json.loads(good.read_bytes().split(b"\n", 1)[1])
    where = data.draw(st.sampled_from(list(paths(content))[1:]))
    parent = content
    for key in where[:-1]:
        parent = parent[key]
    if data.draw(st.booleans()):
        parent[where[-1]] = data.draw(JSON_VALUES)
    else:
        del parent[where[-1]]
    try:
        write_file(tmp_path / "forged", content)
    except (ValueError, UnicodeEncodeError):
        return
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=8), cache_dir=None)
    state = learner.ridge
    try:
        learner.load_model(tmp_path / "forged")
    except StateError:
        assert learner.ridge is state
        assert learner.training_texts == []
    else:
        assert np.isfinite(learner.predict(learner.training_texts[0] if learner.training_texts else "a"))
        assert len(learner.training_texts) == len(learner.training_scores) == len(learner.training_metadata)


def test_saving_is_atomic(trained, tmp_path, monkeypatch):
    path = tmp_path / "m"
    trained.save_model(path)
    good = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    trained.add_training_example("more", 1.0)
    with pytest.raises(InputError, match=r"cannot be written \(disk is full\); nothing was changed"):
        trained.save_model(path)
    assert path.read_bytes() == good
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_path_that_cannot_be_written_is_refused(trained, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a folder; give the path of a file"):
        trained.save_model(tmp_path)
    with pytest.raises(InputError, match=r"cannot be written \(.*\); give another path"):
        trained.save_model(tmp_path / "file" / "m")


def test_keep_examples_false_leaves_the_rated_texts_out_of_every_file(tmp_path):
    learner = make(tmp_path, CountingModel(), keep_examples=False)
    learner.add_training_examples([(f"secret {text}", score, {"who": "patient"}) for text, score in rated(20)])
    learner.train()
    learner.save_model(tmp_path / "m")
    learner.save(tmp_path / "m.json")
    learner.save(tmp_path / "m.pkl")
    lexical = make(tmp_path, keep_examples=False)  # the counting model would be pickled with the texts it was asked
    lexical.add_training_examples(learner.ridge.examples)
    lexical.train()
    lexical.save(tmp_path / "whole", save_program=True)
    assert dspy.load(tmp_path / "whole", allow_pickle=True).predict("lamp") == lexical.predict("lamp")
    for name in ("m", "m.json", "m.pkl", "whole/program.pkl"):
        raw = (tmp_path / name).read_bytes()
        assert b"secret" not in raw
        assert b"patient" not in raw
    loaded = make(tmp_path, CountingModel(), keep_examples=False)
    loaded.load_model(tmp_path / "m")
    assert loaded.training_texts == []
    assert loaded.predict("lamp") == learner.predict("lamp")


def test_no_key_and_no_address_is_in_any_file(tmp_path):
    secret = "sk-very-secret"
    model = CountingModel()
    embedder = dspy.Embedder(model, caching=False)
    learner = Qwen3EmbeddingValueLearner(
        embedder=embedder, api_key=secret, api_base="https://host.example/v1?token=abc", cache_dir=tmp_path
    )
    learner.add_training_examples(rated(10))
    learner.train()
    learner.save_model(tmp_path / "m")
    learner.save(tmp_path / "m.json")
    learner.save(tmp_path / "program", save_program=True)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert secret.encode() not in raw, path
            assert b"token=abc" not in raw, path
    shown = repr(learner) + repr(vars(learner)) + repr(learner._embedding.spec)
    assert secret not in shown
    assert "token=abc" not in shown


# DSPy's own ways


class Program(dspy.Module):
    def __init__(self, learner):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.value = learner

    def forward(self, question):
        return self.value(text=question)


def test_dspys_save_and_load_give_the_same_bits(trained, tmp_path):
    program = Program(trained)
    program.save(tmp_path / "p.json")
    fresh = Program(make(tmp_path, embedding_dim=512))
    fresh.load(tmp_path / "p.json")
    assert [fresh(question=text).score for text in NEW] == trained.predict_many(NEW).tolist()
    assert fresh.value.training_texts == trained.training_texts
    fresh.load(tmp_path / "p.json")
    assert fresh(question=NEW[0]).score == trained.predict(NEW[0])


def test_the_state_in_dspys_json_is_one_parameter(trained, tmp_path):
    trained.save(tmp_path / "v.json")
    state = json.loads((tmp_path / "v.json").read_bytes())
    assert set(state) == {"ridge", "metadata"}
    assert [name for name, _ in Program(trained).named_parameters()] == ["answer", "value.ridge"]
    assert not isinstance(trained.ridge, dspy.Module)


def test_a_whole_program_is_saved_and_loaded_in_a_fresh_process(trained, tmp_path):
    trained.save(tmp_path / "program", save_program=True)
    code = (
        "import sys, json, dspy\n"
        "program = dspy.load(sys.argv[1], allow_pickle=True)\n"
        "print(json.dumps([program(text=text).score for text in json.loads(sys.argv[2])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "program", json.dumps(NEW)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == trained.predict_many(NEW).tolist()


def test_a_state_of_another_model_is_refused_at_first_use(trained, tmp_path):
    trained.save(tmp_path / "v.json")
    for learner in (make(tmp_path, embedding_dim=256), make(tmp_path, CountingModel(size=512))):
        learner.load(tmp_path / "v.json")
        with pytest.raises(StateError, match="fitted with another embedding model"):
            learner.predict("lamp")
        learner.unfit()
        learner.train()
        assert np.isfinite(learner.predict("lamp"))


def test_another_model_under_the_same_name_is_refused_and_may_be_trained_anew(tmp_path):
    class Changed(CountingModel):
        def __call__(self, texts):
            return super().__call__(texts)[:, ::-1]

    learner = make(tmp_path, CountingModel())
    learner.add_training_examples(rated(30))
    learner.train()
    learner.save_model(tmp_path / "m")
    changed = Qwen3EmbeddingValueLearner(embedder=Changed(), cache_dir=tmp_path / "elsewhere")
    changed.load_model(tmp_path / "m")
    with pytest.raises(StateError, match=r"other vectors for a probe text .* or migrate\(\) where it is loaded"):
        changed.predict("a new text")
    changed.unfit()
    changed.train()
    assert np.isfinite(changed.predict("a new text"))


def test_a_blank_instruction_is_none_and_another_one_is_another_model(tmp_path):
    learner = make(tmp_path, instruction=" ")
    learner.add_training_examples(rated(10))
    learner.train()
    assert learner.instruction is None
    learner.save(tmp_path / "v.json")
    same = make(tmp_path, instruction="")
    same.load(tmp_path / "v.json")
    assert same.predict("lamp") == learner.predict("lamp")
    other = make(tmp_path, instruction="Judge")
    other.load(tmp_path / "v.json")
    with pytest.raises(StateError, match="instruction: '' saved, 'Judge' here"):
        other.predict("lamp")


@pytest.mark.parametrize("forged", [np.ones((3, 8), np.float32), np.full((3, 8), 3e38, np.float32), np.zeros((3, 8))])
def test_probe_vectors_that_would_pass_any_model_are_refused(tmp_path, forged):
    small_file(tmp_path)
    content = json.loads((tmp_path / "good").read_bytes().split(b"\n", 1)[1])
    content["head"]["fit"]["probe"]["vectors"] = encode_array(forged.astype(np.float32))
    write_file(tmp_path / "forged", content)
    with pytest.raises(StateError, match="the saved probe has no unit vectors"):
        make(tmp_path, CountingModel(size=8)).load_model(tmp_path / "forged")


def test_what_is_no_path_or_no_file_is_refused(trained):
    for path in (None, 3, "\0", "a" * 5000):
        for call in (trained.save_model, trained.load_model):
            with pytest.raises(InputError, match=r"path must be a string|cannot be the path of a file"):
                call(path)
    with pytest.raises(InputError, match="it is no regular file"):
        trained.load_model("/dev/zero")


def test_an_anonymous_embedder_is_told_by_its_probe_vectors(tmp_path):
    def learner_with(scale):
        model = CountingModel(scale=scale)
        with pytest.warns(QVLWarning, match="no name"):
            return make(tmp_path, lambda texts: model(texts) + (scale - 1) * np.arange(64))

    learner = learner_with(1.0)
    learner.add_training_examples(rated(20))
    learner.train()
    learner.save_model(tmp_path / "m")
    same = learner_with(1.0)
    with pytest.warns(QVLWarning, match="no name"):  # made once more, at the saved size
        same.load_model(tmp_path / "m")
    assert same.predict("lamp") == learner.predict("lamp")
    other = learner_with(2.0)
    with pytest.warns(QVLWarning, match="no name"):
        other.load_model(tmp_path / "m")
    with pytest.raises(StateError, match="other vectors for a probe text"):
        other.predict("lamp")


def test_reset_keeps_the_fit_since_most_optimizers_begin_with_it(trained):
    copied = trained.reset_copy()
    assert copied.predict("lamp") == trained.predict("lamp")
    assert copied.training_texts == trained.training_texts


def test_a_deep_copy_shares_arrays_and_model_and_learns_on_its_own(trained):
    twin = copy.deepcopy(trained)
    assert twin.ridge.coef_ is trained.ridge.coef_
    assert twin._embedding is trained._embedding
    before = trained.predict("zebra")
    twin.add_training_examples([("zebra", 0.0)] * 9)
    twin.train()
    assert trained.predict("zebra") == before != twin.predict("zebra")
    assert len(trained.training_texts) == 60


def test_fitted_arrays_are_read_only(trained):
    with pytest.raises(ValueError, match="read-only"):
        trained.ridge.coef_[0] = 1.0


def test_the_module_is_never_marked_compiled(trained):
    # DSPy drops a compiled submodule's parameters from the outer state.
    assert trained._compiled is False
    assert "value.ridge" in Program(trained).dump_state()


def test_a_program_with_a_learner_still_has_one_language_model(trained):
    lm = dspy.utils.DummyLM([{"answer": "yes"}])
    program = Program(trained)
    program.set_lm(lm)
    assert program.get_lm() is lm


# The head and the arrays by themselves


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.ones(3, np.float32), np.empty((0, 4), np.float32)])
def test_arrays_survive_json_bit_for_bit(array):
    entry = json.loads(json.dumps(encode_array(array)))
    back = decode_array(entry, "array", array.dtype.name, (None,) * array.ndim)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert not back.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "object"}, "must be float64 of shape"),
        ({"dtype": "float32"}, "must be float64 of shape"),
        ({"shape": [3, 2]}, r"must be float64 of shape \(2, 3\)"),
        ({"shape": "23"}, "must be float64 of shape"),
        ({"shape": [2, -3]}, "must be float64 of shape"),
        ({"shape": [2, True]}, "must be float64 of shape"),
        ({"base64": "%%%"}, "is not valid base64"),
        ({"base64": None}, "is not valid base64"),
        ({"base64": "AAAA"}, "has 3 bytes, but its shape"),
        ({"base64": encode_array(np.full(6, np.nan))["base64"]}, "holds NaN or infinity"),
    ],
)
def test_a_damaged_array_is_refused(change, message):
    entry = {**encode_array(np.arange(6.0).reshape(2, 3)), **change}
    with pytest.raises(StateError, match=message):
        decode_array(entry, "coef", "float64", (2, 3))


def test_loading_a_state_twice_changes_nothing_more(trained):
    state = trained.ridge.dump_state()
    head = RidgeHead()
    head.load_state(state)
    once = head.dump_state()
    head.load_state(state)
    assert head.dump_state() == once == state


def leaves(state, name=""):
    """What a tracker logs of a state: MLflow's autolog takes dicts and lists apart, and writes the rest by `str`."""
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else None
    if parts is None:
        return {} if state is None else {name: str(state)}
    return {inner: leaf for key, part in parts for inner, leaf in leaves(part, f"{name}.{key}").items()}


def test_rated_texts_are_no_parameters_of_a_run_but_one_entry(tmp_path):
    learner = make(tmp_path)
    learner.add_training_examples(
        [{"text": text, "score": y, "query": f"why {text[:9]}", "metadata": {"by": "me"}} for text, y in rated(40)]
    )
    learner.optimize_hyperparameters([0.5])
    program = Program(learner)
    program.rerank = Reranker(learner)
    program.rerank.learn(
        [
            JudgedQuery(f"what is {n}", [f"{n} is it", f"{n} is not"], np.array([1.0, n % 2 - 1]), first_stage=False)
            for n in range(9)
        ]
    )
    logged = {name: leaf for name, leaf in leaves(program.dump_state()).items() if "ridge" in name}
    assert {name: leaf for name, leaf in logged.items() if "weights" not in name} == {
        ".value.ridge.schema": str(SCHEMA),
        ".value.ridge.alpha": "0.5",
        ".value.ridge.alpha_tuned": "True",
        ".value.ridge.examples": "40 rated texts",
        ".value.ridge.fit": f"{len(learner.ridge.coef_)} coefficients, alpha 0.5",
        ".rerank.ridge.schema": str(SCHEMA),
        ".rerank.ridge.order": "learned from 9 queries",
    }
    program.save(tmp_path / "p.json")
    program.save(tmp_path / "p.pkl")
    for way in ("p.json", "p.pkl", program.dump_state(), pickle.loads(pickle.dumps(program.dump_state()))):
        fresh = Program(make(tmp_path))
        fresh.rerank = Reranker(fresh.value)
        if isinstance(way, str):
            fresh.load(tmp_path / way, allow_pickle=True)
        else:
            fresh.load_state(copy.deepcopy(way))
        assert fresh.dump_state() == program.dump_state()
        assert fresh.value.predict("lamp", "why") == learner.predict("lamp", "why")
    assert leaves(copy.deepcopy(program.dump_state())) == leaves(program.dump_state())


def test_a_state_whose_parts_lie_open_is_read_as_well(trained):
    state = trained.ridge.content()
    assert isinstance(state["fit"], dict)
    head = RidgeHead()
    head.load_state(state)
    assert head.dump_state() == trained.ridge.dump_state()


def test_a_state_that_cannot_be_used_leaves_the_head_as_it_was(trained):
    good = trained.ridge.dump_state()
    for change, message in [
        ({"schema": 1}, "has schema 1, this version of dspy_qvl reads schemas 3 to 6"),
        ({"alpha": -1.0}, "must be above 0"),
        ({"alpha_tuned": 1}, "'alpha_tuned' in .* has the wrong type"),
        (
            {"examples": {"texts": ["a"], "scores": [], "metadata": [None], "queries": []}},
            "1 texts, 0 scores, 1 metadata",
        ),
        ({"fit": {}}, "has no 'coef'"),
        ({"fit": "{}"}, "has no 'coef'"),
        ({"fit": "{"}, "'fit' in the saved value function holds no JSON"),
        ({"fit": "[" * 100_000}, "'fit' in the saved value function holds no JSON"),
        ({"examples": "[1]"}, "'examples' in .* must hold a dict, but holds list"),
    ]:
        with pytest.raises(StateError, match=message):
            trained.ridge.load_state({**good, **change})
        assert trained.ridge.dump_state() == good


def test_an_unfitted_head_with_ratings_is_saved_and_loaded(learner, tmp_path):
    learner.save(tmp_path / "v.json")
    fresh = make(tmp_path, embedding_dim=512)
    fresh.load(tmp_path / "v.json")
    assert fresh.training_texts == learner.training_texts
    assert fresh.train() == learner.train()


def test_a_file_saved_before_training_is_refused(learner, tmp_path):
    write_file(tmp_path / "m", {"settings": {}, "head": learner.ridge.dump_state()})
    with pytest.raises(StateError, match="holds no fitted value function"):
        learner.load_model(tmp_path / "m")
