"""The folder of a model: what makes another model of it, and what is not let in."""

import copy
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from model2vec import StaticModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from dspy_qvl import InputError, ModelUnavailableError, Qwen3EmbeddingValueLearner, StateError
from dspy_qvl.embedding.models.spec import ModelSpec
from tests.conftest import rated


def make(folder: Path, **files: bytes) -> Path:
    """A folder with a configuration and some files, `_` in a name for the folder before it."""
    for name, written in {"config.json": b"{}", **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(written)
    return folder


def identity(folder: Path) -> dict[str, str]:
    return dict(ModelSpec(str(folder), settings={"precision": "float32"}).model().identity or {})


def digest(**files: bytes) -> str:
    """The digest that version 0.1.0 gave files."""
    whole = b"".join(
        f"{name.replace('__', '/')}\0{len(files[name])}\0".encode() + files[name] for name in sorted(files)
    )
    return hashlib.blake2b(whole, digest_size=16).hexdigest()


def test_weights_and_settings_are_the_identity_and_what_is_not_read_is_none_of_it(tmp_path):
    read = {"model.safetensors": b"weights", "1_Pooling__config.json": b"{}", "vocab.txt": b"a\nb"}
    unread = {"pytorch_model.bin": b"p", "modeling.py": b"1/0", "README.md": b"", "onnx__model.onnx": b"o"}
    plain = make(tmp_path / "plain" / "m", **read)
    assert identity(plain) == {
        "model": "m",
        "content": digest(**{"config.json": b"{}", **read}),
        "backend": "sentence-transformers",
    }
    assert identity(make(tmp_path / "full" / "m", **read, **unread)) == identity(plain)
    assert ModelSpec(str(plain)).model().former is None
    for name in read:
        other = make(tmp_path / f"other {name}" / "m", **{**read, name: b'{"a": 1}'})
        assert identity(other) != identity(plain)


@pytest.mark.parametrize(
    ("read", "instead"),
    [("pytorch_model.bin", "2_Dense__model.safetensors"), ("spiece.model", "tokenizer_config.json")],
)
def test_what_is_read_instead_is_part_of_the_identity(tmp_path, read, instead):
    files = {instead: b"{}"}
    one, other = (make(tmp_path / str(number) / "m", **files, **{read: b"%d" % number}) for number in range(2))
    assert identity(one)["content"] == identity(other)["content"] == digest(**{"config.json": b"{}", **files})
    assert identity(one)["weights"] != identity(other)["weights"]
    former = ModelSpec(str(one), settings={"precision": "float32"}).model().former
    assert former == {name: value for name, value in identity(one).items() if name != "weights"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "modeling.Evil"}]),
        ("router_config.json", {"types": {"query": "sentence_transformers.models.Pooling", "text": "modeling.Evil"}}),
        ("2_Dense__config.json", {"in_features": 3, "activation_function": "modeling.Evil"}),
        ("0_Words__wordembedding_config.json", {"tokenizer_class": "modeling.Evil"}),
    ],
)
def test_code_beside_weights_is_refused_and_never_run(tmp_path, name, settings):
    folder = make(
        tmp_path / "m",
        **{"modeling.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode(), name: json.dumps(settings).encode()},
    )
    with pytest.raises(InputError, match=r"names 'modeling.Evil', which is code of the model's own, and no code"):
        Qwen3EmbeddingValueLearner(str(folder), cache_dir=None)
    assert not (tmp_path / "ran").exists()


def test_what_libraries_name_in_settings_passes(tmp_path):
    modules = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense"}]
    identity(
        make(
            tmp_path / "m",
            **{
                "modules.json": json.dumps(modules).encode(),
                "1_Dense__config.json": b'{"activation_function": "torch.nn.modules.activation.Tanh"}',
                "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer", "type": 3}',
                "odd_config.json": b"[" * 10**5,
            },
        )
    )


def test_a_folder_with_what_is_no_plain_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(make(tmp_path / "m") / "model.safetensors")
    (make(tmp_path / "n") / "vocab.txt").symlink_to("/dev/zero")
    (make(tmp_path / "o") / "gone.json").symlink_to(tmp_path / "nowhere")
    begun = time.monotonic()
    for name in "mn":
        with pytest.raises(InputError, match="is no plain file; a model's folder must hold nothing else"):
            identity(tmp_path / name)
    identity(tmp_path / "o")
    (make(tmp_path / "p") / "config.json").write_bytes(b" " * 2**20 + b"{}")
    with pytest.raises(InputError, match="too many for a file of settings"):
        identity(tmp_path / "p")
    assert time.monotonic() - begun < 1


@pytest.mark.local
def test_what_was_fitted_before_pickled_weights_counted_is_served_and_other_weights_are_refused(tmp_path, minilm):
    import torch
    from safetensors.torch import load_file

    weights = load_file(f"{minilm}/model.safetensors")
    for name in ("one", "other"):
        shutil.copytree(minilm, tmp_path / name / "m", ignore=shutil.ignore_patterns("*.safetensors"))
        torch.save(weights, tmp_path / name / "m" / "pytorch_model.bin")
        weights = {key: value.flip(0) if value.ndim == 2 else value for key, value in weights.items()}
    one, other = (
        Qwen3EmbeddingValueLearner(
            str(tmp_path / name / "m"), cache_dir=tmp_path / name, features=None, precision="float32"
        )
        for name in ("one", "other")
    )
    one.add_training_examples(rated(12))
    one.train()
    before = copy.deepcopy(one.ridge.content())
    del before["fit"]["identity"]["weights"]
    value = one.predict("quick lamp")
    again = Qwen3EmbeddingValueLearner(str(tmp_path / "one" / "m"), cache_dir=None, features=None, precision="float32")
    for state in (one.ridge.dump_state(), before):
        again.ridge.load_state(state)
        assert again.predict("quick lamp") == pytest.approx(value, abs=1e-4)
        other.ridge.load_state(state)
        with pytest.raises(StateError, match="another embedding model"):
            other.predict("quick lamp")


def static_folder(folder: Path, table: np.ndarray) -> Path:
    """A static model with these vectors of the words 0 to n - 1."""
    words = Tokenizer(WordLevel({"[UNK]": 0, **{str(n): n for n in range(1, len(table))}}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    StaticModel(table, words, {"model_type": "model2vec"}).save_pretrained(folder)
    return folder


def test_a_folder_whose_files_change_is_another_model_in_the_same_process(tmp_path):
    table = np.random.default_rng(0).normal(size=(40_000, 16)).astype(np.float32)  # 2.6 MB
    folder = static_folder(tmp_path / "model", table)
    before = Qwen3EmbeddingValueLearner(str(folder), cache_dir=tmp_path / "cache")
    vector = before.embed(["20000"])[0]
    table[15_000:25_000] = table[15_000:25_000][::-1]  # neither the first nor the last MiB
    static_folder(folder, table)
    after = Qwen3EmbeddingValueLearner(str(folder), cache_dir=tmp_path / "cache")
    assert after.identity["content"] != before.identity["content"]
    row = table[20_000].astype(np.float64)
    np.testing.assert_allclose(after.embed(["20000"])[0], row / np.linalg.norm(row), atol=1e-6)
    assert not np.allclose(vector, after.embed(["20000"])[0])


def test_a_learner_refuses_files_that_changed_before_it_loaded_them(tmp_path):
    folder = static_folder(tmp_path / "model", np.eye(8, dtype=np.float32))
    learner = Qwen3EmbeddingValueLearner(str(folder), cache_dir=None)
    static_folder(folder, -np.eye(8, dtype=np.float32))
    with pytest.raises(ModelUnavailableError, match=r"the files in .* have changed since this learner was made"):
        learner.embed(["3"])
