"""The lexical model: its vectors never change, and depend on nothing but the text."""

import hashlib
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.utils import murmurhash3_32

from dspy_qvl.embedding.models import hashing
from dspy_qvl.embedding.models.lexical import LexicalModel
from dspy_qvl.features.built_in import HASHED
from tests.conftest import rated

TRICKY = [
    "",
    " \n\t",
    "Good coffee!",
    "I don't, won't and can’t like it: not good, never bad at all; nothing. Great",
    "no not never, no one' t here t",
    "' t now 't then",
    "it's THE and of",
    "🙂 👩‍👩‍👧 :-) <3 ...",
    "İstanbul ΑΣ Straße ＮＯＴ naïve",
    "日本語 のテキスト 中",
    "one\u2028two\x85three\x1cfour\u3000five\xa0six",
    "\u200b \0 foo_bar ½ ² 3.14",
    "x" * 3000,
    "good " * 300,
]
# The digest of `bits` of the texts above: without word 2-grams, as scikit-learn's hashing gave them.
BITS = {
    (2, 0.6): "ab19701756efb10cdfbc6786a8ced651",
    (64, 0.6): "7b6f1743f3d334ab0364f9c6f746b685",
    (1000, 0.9): "05294e20f54dda2872b9247b00b1617d",
    (4096, 0.6): "1b8023f89eb24520343f2bcaf74a109f",
    (8192, 0.8): "05108cc6fd9ba626e638b9e1b8972000",
    (262144, 0.6): "d3d03a6ae1387fd1ae979782dba7355d",
    (262144, 0.6, 0.5): "85f59be333bdf82f86779fc7da3aa615",
}


@pytest.fixture
def words_seen():
    """The process's vocabulary, empty at the beginning."""
    hashing.vocabulary.cache_clear()
    return hashing.vocabulary(LexicalModel.WORD, LexicalModel.NGRAMS)


def bits(model: LexicalModel, texts: list[str]) -> str:
    made = model.rows(texts)
    numbers = zip((made.indptr, made.indices, made.data), ("<i4", "<i4", "<f4"), strict=True)
    return hashlib.blake2b(b"".join(a.astype(kind).tobytes() for a, kind in numbers), digest_size=16).hexdigest()


@pytest.mark.parametrize("arguments", BITS)
def test_a_vector_never_changes(arguments):
    assert bits(LexicalModel(*arguments), TRICKY) == BITS[arguments]


def test_the_block_of_hashed_words_never_changes():
    assert (
        bits(HASHED, TRICKY) == "9d7e376d6c05475ec724db8a69c2c9f3"
    )  # saved coefficients are of its columns: another hash needs another name


def test_the_sparse_and_the_dense_form_are_one_vector():
    model = LexicalModel(1000)
    sparse, dense = model.sparse(TRICKY), model(TRICKY)
    np.testing.assert_array_equal(sparse.toarray(), dense)
    assert type(sparse).__name__ == "csr_array"
    assert (sparse.dtype, sparse.indices.dtype, sparse.shape) == (np.float32, np.int32, dense.shape)
    assert csr_array((sparse.data, sparse.indices, sparse.indptr)).has_canonical_format
    assert model.sparse([]).shape == model([]).shape == (0, 1000)
    for row, text in enumerate(TRICKY):
        alone = model.sparse([text])
        assert alone.shape == (1, 1000)
        assert (alone != sparse[[row]]).nnz == 0


@pytest.mark.parametrize("tokens", [TRICKY[3].split(), [*"".join(TRICKY).split(), "é🙂中" * 9, *map(str, range(500))]])
@pytest.mark.parametrize("sizes", [(3, 5), (2, 6), (4, 4)])
def test_ngrams_and_their_hashes_are_those_of_scikit_learn(tokens, sizes):
    cut = [CountVectorizer(analyzer="char_wb", ngram_range=sizes).build_analyzer()(token) for token in tokens]
    hashes, counts = hashing.ngram_hashes([token.lower() for token in tokens], *sizes)
    assert list(counts) == [len(ngrams) for ngrams in cut]
    assert hashes.tolist() == [abs(murmurhash3_32(ngram)) for ngrams in cut for ngram in ngrams]


def column(text: str, n_features: int) -> int:
    return abs(murmurhash3_32(text)) % n_features


def column_of_pair(first: str, second: str, n_features: int) -> int:
    hashed = (abs(murmurhash3_32(first)) * 0x9E3779B1 + abs(murmurhash3_32(second))) % 2**32
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B % 2**32
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 % 2**32
    return (hashed ^ hashed >> 16) % n_features


def unit_root(columns: list[int], n_features: int, counts: list[float] | None = None) -> np.ndarray:
    root = np.sqrt(np.bincount(columns, weights=counts, minlength=n_features))
    return root / np.linalg.norm(root)


@pytest.mark.parametrize("n_features", [64, 2**18])
def test_a_vector_is_the_weighted_sum_of_its_words_pairs_and_ngrams(n_features):
    text = "The red lamp: a red lamp, a lamp"
    words = ["the", "red", "lamp", ":", "a", "red", "lamp", ",", "a", "lamp"]
    pairs = [("the", "red"), ("red", "lamp"), ("lamp", "red"), ("red", "lamp"), ("lamp", "lamp")]
    counts = [0.25 if word in ("the", "a") else 1.0 for word in words]
    cut = [(token, hashing.ngram_hashes([token], 3, 5)[0] % n_features) for token in text.lower().split()]
    parts = (
        unit_root([column(word, n_features) for word in words], n_features, counts),
        unit_root([column_of_pair(*pair, n_features) for pair in pairs], n_features),
        unit_root(
            np.concatenate([columns for _, columns in cut]),
            n_features,
            np.concatenate([np.full(len(columns), 0.25 if token in ("the", "a") else 1.0) for token, columns in cut]),
        ),
    )
    wanted = np.array([0.6, 0.5, (1 - 0.36 - 0.25) ** 0.5]) @ parts
    made = LexicalModel(n_features, 0.6, 0.5)(["not it", text, "", "lamp shade"])[1]
    np.testing.assert_allclose(made, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_word_pairs_do_not_meet_more_often_than_by_chance():
    hashes = np.abs(np.random.default_rng(0).integers(-(2**31), 2**31, 300)).astype(np.uint32)
    first, second = np.repeat(hashes, 300), np.tile(hashes, 300)
    columns = hashing.pair_hashes(first, second) % 2**18
    by_chance = 2**18 * (1 - np.exp(-len(columns) / 2**18))
    assert len(np.unique(columns)) == pytest.approx(by_chance, rel=0.01)


def test_a_vector_depends_neither_on_other_texts_nor_on_what_was_seen_before(words_seen):
    texts = [*TRICKY, *(text for text, _ in rated(30))] * 60  # several slices
    model = LexicalModel(512)
    together = model(texts)
    np.testing.assert_array_equal(
        np.concatenate([model([text]) for text in reversed(texts[:200])])[::-1], together[:200]
    )
    hashing.vocabulary.cache_clear()
    np.testing.assert_array_equal(model(texts[::-1])[::-1], together)


def test_a_full_vocabulary_begins_anew_without_changing_a_vector(words_seen):
    words_seen.limit, first = 200, words_seen.look_up([])[0]
    for text in TRICKY:
        LexicalModel(64)([text])
    last = words_seen.look_up([])[0]
    assert last is not first
    assert len(last.numbers) < len({token for text in TRICKY for token in text.lower().split()})
    assert all(bits(LexicalModel(*arguments), TRICKY) == BITS[arguments] for arguments in BITS)


def test_threads_share_a_vocabulary_that_fills_up_and_grows(words_seen):
    texts = [f"{text} number {row} 'tis not {row * 7919}" for row, (text, _) in enumerate(rated(400))]
    model = LexicalModel(256)
    alone = model(texts)
    hashing.vocabulary.cache_clear()
    hashing.vocabulary(model.WORD, model.NGRAMS).limit = 5000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda row: model([texts[row]])[0], [*range(400), *reversed(range(400))]))
    finally:
        sys.setswitchinterval(interval)
    np.testing.assert_array_equal(made, [*alone, *alone[::-1]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_hashes_though_its_parent_was_extending_the_vocabulary(words_seen):
    def extend_slowly():
        with hashing._EXTENDING:
            holding.set()
            time.sleep(0.1)

    holding = threading.Event()
    thread = threading.Thread(target=extend_slowly)
    thread.start()
    holding.wait()
    child = os.fork()
    if not child:
        os._exit(0 if bits(LexicalModel(64), TRICKY) == BITS[64, 0.6] else 1)
    thread.join()
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, 9)
    assert ended == (child, 0)


def test_a_pickled_model_carries_no_vocabulary():
    model = LexicalModel(4096, 0.7)
    before = bits(model, TRICKY)
    pickled = pickle.dumps(model)
    assert len(pickled) < 200
    assert bits(pickle.loads(pickled), TRICKY) == before


def test_a_lone_surrogate_is_refused_and_harms_no_other_text(words_seen):
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        LexicalModel(64)([*TRICKY, "a \ud800"])
    assert bits(LexicalModel(64), TRICKY) == BITS[64, 0.6]


def test_the_lexical_model_gives_unit_vectors_of_the_wanted_size():
    vectors = LexicalModel(1000)(["Good coffee!", "bad coffee", "🙂", "a"])
    assert vectors.shape == (4, 1000)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)


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


def test_words_of_any_length_are_hashed_as_scikit_learn_does():
    words = ["", "a", "né", "x" * 63, "y" * 64, "z" * 65, "日本語" * 40, "w" * 1001, *map(str, range(300))]
    assert hashing.word_hashes(words).tolist() == [abs(murmurhash3_32(word)) for word in words]
    assert len(hashing.word_hashes([])) == 0
