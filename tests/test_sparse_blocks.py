"""Sparse blocks, the built-in one of hashed words and the caller's own: learned from, updated, saved and loaded."""

import copy
import pickle

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array

from dspy_qvl import FeatureError, InputError, Qwen3EmbeddingValueLearner, StateError
from dspy_qvl.features import LEXICAL, WIDTHS, Blocks, Table, packed, unpacked
from dspy_qvl.fitting import Frequencies, Weights, copies, make_folds
from dspy_qvl.ridge import regression, updates
from dspy_qvl.state import decode_array, encode_array
from dspy_qvl.vectors import MixedRows
from tests.conftest import BAD, GOOD, CountingModel, rated, ridge_by_hand, weighed_columns

NEW = [text for text, _ in rated(20, seed=8)]
WORDS = [*GOOD, *BAD, "lamp", "unseen"]


def counted(texts):
    """How often each word stands in a text, as a scipy sparse matrix."""
    counted.asked.extend(texts)
    return csr_matrix([[float(text.split().count(word)) for word in WORDS] for text in texts])


counted.asked = []


def dense(texts):
    """The same as an array."""
    return counted(texts).toarray()


def make(features, folder=None, **settings):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=folder, features=features)
    learner.add_training_examples(rated(60))
    return learner


def lexical(folder=None, n=60):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=folder)
    learner.add_training_examples(rated(n))
    return learner


def nothing(texts):
    """A block that no text has anything in."""
    return csr_matrix((len(texts), 30))


MAKERS = {
    "words beside": lambda folder=None: make(["lexical", "length"], folder),
    "words alone": lexical,
    "own": lambda folder=None: make([counted, "length"], folder),
    "own, empty": lambda folder=None: make([nothing], folder),
    "own and words": lambda folder=None: make([counted, "lexical"], folder),
}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(kind):
    learner = MAKERS[kind]()
    learner.ridge_alpha = 0.03
    learner.train()
    return learner


# Columns


def test_dense_blocks_stand_before_sparse_ones():
    blocks = Blocks(("words", "a", "tags", "b"), (5, 2, 3, 1), frozenset({"words", "tags"}))
    assert blocks.slices == {"words": slice(3, 8), "a": slice(0, 2), "tags": slice(8, 11), "b": slice(2, 3)}
    np.testing.assert_array_equal(blocks.spread([1, 2, 3, 4]), [2, 2, 4, 1, 1, 1, 1, 1, 3, 3, 3])
    rng = np.random.default_rng(0)
    columns = {
        name: random_array((4, width), density=0.5, format="csr", dtype=np.float32, rng=rng)
        if name in blocks.sparse
        else rng.random((4, width)).astype(np.float32)
        for name, width in zip(blocks.names, blocks.widths, strict=True)
    }
    table = Table.of(columns)
    assert table.blocks == blocks
    for chosen in (table, table.rows(np.array([2, 0]))):
        rows = slice(None) if chosen is table else [2, 0]
        for name, block in chosen.columns.items():
            wanted = columns[name].toarray() if name in blocks.sparse else columns[name]
            got = block.toarray() if name in blocks.sparse else block
            np.testing.assert_array_equal(got, wanted[rows])
    assert table.only(["a", "tags"]).blocks == Blocks(("a", "tags"), (2, 3), frozenset({"tags"}))
    assert isinstance(table.only(["a", "b"]).X, np.ndarray)
    again = unpacked(packed(columns["words"]), 5)
    np.testing.assert_array_equal(again.toarray(), columns["words"].toarray())


def test_a_value_is_an_inner_product_with_the_columns_side_by_side(trained):
    fit = trained.ridge.fitted
    X = fit.fitted.within(trained._columns(fit)(NEW).X)
    assert isinstance(X, MixedRows)
    by_hand = X.toarray().astype(np.float64) @ trained.ridge.coef_ + trained.ridge.intercept_
    np.testing.assert_allclose(trained.predict_many(NEW), by_hand, rtol=1e-9)
    assert [trained.predict(text) for text in NEW] == trained.predict_many(NEW).tolist()
    assert trained.predict_many(NEW[::-1]).tolist() == trained.predict_many(NEW).tolist()[::-1]
    assert [trained.predict_std(text) for text in NEW] == trained.predict_std_many(NEW).tolist()
    assert np.isfinite(trained.predict_many(["", "words that nobody rated before", "日本語 😀"])).all()


def test_the_lexical_model_learns_from_sparse_words_in_place_of_its_vectors():
    learner = lexical()
    report = learner.train()
    fitted = learner.ridge.fitted.fitted
    assert fitted.blocks.names == (LEXICAL, "length")
    assert len(learner.ridge.coef_) == WIDTHS[LEXICAL] + 1
    assert set(report["blocks"]) == {LEXICAL, "length"}
    assert report["blocks"][LEXICAL]["idf_power"] in (0.0, 0.5, 1.0)
    assert report["val_spearman"] > 0.5
    assert len(learner.embed(NEW[:1])[0]) == learner.embedding_dim == 4096  # cosines are still of its vectors
    assert learner.nearest(learner.training_texts[0], 1)[0][1] == pytest.approx(1.0, abs=1e-6)
    sized = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    sized.add_training_examples(rated(30))
    sized.train()
    assert sized.ridge.fitted.blocks == ("embedding", "length")


def test_a_sparse_block_is_worth_the_same_as_a_dense_one():
    values = []
    for own in (counted, dense):
        learner = make([own])
        learner.ridge_alpha = 0.3
        learner.train()
        values.append(learner.predict_many(NEW))
    np.testing.assert_allclose(*values, rtol=1e-9)


# Document frequencies


def test_frequencies_count_the_texts_with_a_word():
    X = random_array((50, 30), density=0.2, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    frequencies = Frequencies.of(X)
    present = (X.toarray() > 0).sum(axis=0)
    np.testing.assert_array_equal(frequencies.counts, present)
    np.testing.assert_allclose(frequencies.factors, np.log(51 / (1 + present)) + 1)
    assert (Frequencies(50, frequencies.counts, 0.0).factors == 1).all()
    assert (Frequencies(3, np.zeros(2, np.int32), 0.5).factors == np.sqrt(np.log(4) + 1)).all()


def test_frequencies_come_from_the_texts_that_are_learned_from_and_stand_still():
    learner = make(["lexical"])
    learner.ridge.weights = Weights({"embedding": 1.0, "lexical": 1.0}, 1.0)
    learner.train()
    fit = learner.ridge.fitted
    frequencies = fit.fitted.frequencies
    counted_here = Frequencies.of(learner._columns(fit)(learner.training_texts).columns[LEXICAL])
    np.testing.assert_array_equal(frequencies.counts, counted_here.counts)
    assert (frequencies.n_texts, frequencies.power) == (60, 1.0)
    learner.update("a text with entirely different vocabulary", 3.0)
    assert learner.ridge.fitted.fitted.frequencies is frequencies


# Saved, copied, changed


def test_it_survives_copies_pickles_and_both_ways_of_saving(trained, kind, tmp_path):
    values, stds = trained.predict_many(NEW).tolist(), trained.predict_std_many(NEW).tolist()
    trained.save_model(tmp_path / "value.qvl")
    trained.save(tmp_path / "state.json")
    asked = list(counted.asked)
    for way in ("copy", "pickle", "file", "state"):
        other = MAKERS[kind]()
        if way == "copy":
            other = copy.deepcopy(trained)
        elif way == "pickle":
            other = pickle.loads(pickle.dumps(trained))
        elif way == "file":
            other.load_model(tmp_path / "value.qvl")
        else:
            other.load(tmp_path / "state.json")
        assert other.predict_many(NEW).tolist() == values, way
        assert other.predict_std_many(NEW).tolist() == stds, way
        np.testing.assert_array_equal(other.ridge.coef_, trained.ridge.coef_)
    rated_texts = set(trained.training_texts)
    assert not rated_texts & set(counted.asked[len(asked) :])  # their rows were saved


def test_a_file_grows_with_the_columns_in_use(trained, tmp_path):
    trained.save_model(tmp_path / "value.qvl")
    assert (tmp_path / "value.qvl").stat().st_size < 250_000


# Beyond 4,000 rated texts


@pytest.mark.parametrize("kind", ["words beside", "words alone"])
def test_many_texts_are_left_out_by_folds_and_updated_from_the_last_fit(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(regression, "EXACT", 40)
    monkeypatch.setattr(regression, "FEW", 40)
    monkeypatch.setattr(updates, "KERNEL_AT_MOST", 40)
    learner = MAKERS[kind]()
    learner.ridge_alpha = 0.3
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    learner = MAKERS[kind]()
    learner.load_model(tmp_path / "value.qvl")
    y, left = np.array(learner.training_scores), learner.leave_one_out()
    assert not left.exact
    X = weighed_columns(learner)
    X = X[:, X.any(axis=0)]
    for fold in make_folds(copies(learner.training_texts), 5, np.random.default_rng(0)):
        seen = np.setdiff1d(np.arange(60), fold)
        coef, intercept = ridge_by_hand(X[seen], y[seen], 0.3)
        np.testing.assert_allclose(left.values[fold], X[fold] @ coef + intercept, rtol=1e-5)
    assert ((left.leverages > 0) & (left.leverages < 1)).all()
    assert np.isfinite(left.std).all()
    assert [learner.predict_std(text) for text in NEW] == learner.predict_std_many(NEW).tolist()
    exact = MAKERS[kind]()
    exact.load_model(tmp_path / "value.qvl")
    monkeypatch.setattr(regression, "EXACT", 4000)
    assert (learner.predict_std_many(NEW) >= exact.predict_std_many(NEW)).all()
    assert exact.leave_one_out().exact
    starts = []
    fit = updates.fit
    monkeypatch.setattr(updates, "fit", lambda *args, start=None: starts.append(start) or fit(*args, start=start))
    learner.update("quick bright lamp, a delightful thing", 9.5)
    learner.forget(learner.training_texts[3])
    coef, _ = ridge_by_hand(weighed_columns(learner), learner.training_scores, 0.3)
    coef *= learner.ridge.fitted.fitted.column_factors
    assert np.linalg.norm(learner.ridge.coef_ - coef) <= 1e-7 * np.linalg.norm(coef)
    assert len(starts) == 2
    assert all(start is not None and start.coef.any() for start in starts)


def test_updates_give_the_fit_that_training_on_all_would_give(kind, trained):
    learner = copy.deepcopy(trained)
    learner.update("quick bright lamp, a delightful thing", 9.5)
    learner.update("broke at once, refund", 0.5)
    learner.forget(learner.training_texts[3])
    fit = learner.ridge.fitted
    X = (
        fit.fitted.weighed(learner._columns(fit)([one.item for one in learner.ridge.examples]).X)
        .toarray()
        .astype(float)
    )
    y = np.array(learner.training_scores)
    Xc, yc = X - X.mean(axis=0), y - y.mean()
    dual = np.linalg.solve(Xc @ Xc.T + fit.alpha * np.eye(len(y)), yc)
    coef = (Xc.T @ dual) * fit.fitted.column_factors
    np.testing.assert_allclose(learner.ridge.coef_, coef, rtol=1e-8, atol=1e-10 * np.abs(coef).max())


# Refused


def outside(n, column):
    """A sparse matrix with a position that it does not have; scipy does not look."""
    made = csr_matrix(np.ones((n, 20)))
    made.indices[3] = column
    return made


def odd(answer):
    def own(texts):
        return answer(len(texts))

    return own


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: csr_matrix((n + 1, 30)), r"gave an array of shape \(\d+, 30\); it must be"),
        (lambda n: outside(n, 99), "something that is not a table of numbers"),
        (lambda n: outside(n, -1), "something that is not a table of numbers"),
        (lambda n: csr_matrix((n, 2**24 + 1)), "have 16,777,217 columns; they may have 16,777,216 at most"),
        (lambda n: csr_matrix((n, 0)), r"it must be \(\d+, k\) with k > 0"),
        (lambda n: csr_matrix(np.full((n, 20), np.nan)), "gave NaN or infinity for text 0"),
        (lambda n: csr_matrix(np.full((n, 20), 1e300)), "gave NaN or infinity for text 0"),
    ],
)
def test_sparse_rows_that_cannot_be_used_are_refused(answer, message):
    learner = make([odd(answer)])
    with pytest.raises(FeatureError, match=message):
        learner.train()
    assert learner.ridge.fitted is None


def test_a_block_is_always_sparse_or_never(tmp_path):
    kinds = [counted, dense]

    def own(texts):
        return kinds[0](texts)

    learner = make([own])
    learner.train()
    learner.save_model(tmp_path / "value.qvl")
    kinds.reverse()
    with pytest.raises(FeatureError, match="gave a sparse table before and a dense one now"):
        learner.predict("another text")
    fresh = make([own])
    fresh.load_model(tmp_path / "value.qvl")
    with pytest.raises(FeatureError, match="gave a sparse table before and a dense one now"):
        fresh.predict("another text")
    used = make([own])
    used.train()  # with dense rows
    before = used.predict_many(NEW).tolist()
    used.load_model(tmp_path / "value.qvl")
    with pytest.raises(InputError, match=r"'own' 22\) than the value function was fitted on \(.*'own' 22 sparse\)"):
        used.predict("another text")
    with pytest.raises(InputError, match="the blocks have other columns here"):
        used.update("another text", 3.0)
    assert len(before) == len(NEW)


def test_a_narrow_block_is_dense_and_bounded_however_it_comes():
    def own(texts):
        return csr_matrix([[float(len(text))] for text in texts])

    learner = make([own])
    learner.train()
    assert not learner.ridge.fitted.fitted.blocks.sparse
    longest = max(learner.training_texts, key=len)
    far = learner._columns(learner.ridge.fitted)(["q" * 100_000])
    assert learner.ridge.fitted.fitted.within(far.X)[0, -1] == len(longest)


def test_a_row_that_a_saved_fit_could_not_hold_is_refused_when_it_comes():
    def own(texts):
        return csr_matrix([[1e12 if "far" in text else float(text.count(word)) for word in WORDS] for text in texts])

    learner = make([own])
    learner.train()
    before = learner.ridge.dump_state()
    with pytest.raises(InputError, match="too far from the others"):
        learner.update("a far text", 3.0)
    assert learner.ridge.dump_state() == before


def swapped(entry):
    """The columns of a sparse block, those of the first text the other way round."""
    columns = decode_array(entry, "columns", "int32", (None,)).copy()
    columns[:2] = columns[1::-1]
    return encode_array(columns)


@pytest.mark.parametrize(
    ("where", "forged", "message"),
    [
        (("columns",), encode_array(np.int32([5, 3])), "'columns' in the saved fit must ascend"),
        (("columns",), None, "must have coefficients of some of its"),
        (("columns",), encode_array(np.int32([-1])), "'columns' in the saved fit must ascend from 0"),
        (("blocks", 1, "sparse"), False, "38 columns of blocks, but 16 coefficients"),
        (("own", "counted", "columns"), swapped, "must lie within 22, of each text ascending"),
        (("own", "counted", "columns"), encode_array(np.int32([999])), "must be float32 of shape"),
        (("blocks", 1, "bounds"), encode_array(np.zeros((2, 22), np.float32)), "has bounds of a sparse block"),
        (("blocks", 1, "width"), 2**31, "sparse ones may have 16,777,216 at most"),
        (("frequencies",), {"n_texts": 0}, "'n_texts' in the saved frequencies"),
    ],
)
def test_forged_sparse_parts_are_refused(where, forged, message):
    learner = make([counted, "lexical"])
    learner.train()
    state = learner.ridge.content()
    parent = state["fit"]
    for key in where[:-1]:
        parent = parent[key]
    parent[where[-1]] = forged(parent[where[-1]]) if callable(forged) else forged
    before = learner.ridge.dump_state()
    with pytest.raises(StateError, match=message):
        learner.ridge.load_state(state)
    assert learner.ridge.dump_state() == before
