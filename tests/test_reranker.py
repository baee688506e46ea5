"""The passages of a query, best first."""

import asyncio
import gc
import json
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import dspy
import numpy as np
import pytest
from dspy.dsp.utils import dotdict

from dspy_qvl import FitValue, InputError, QVLWarning, Qwen3EmbeddingValueLearner, Reranker, StateError, measures
from dspy_qvl.reranker.judged import JudgedQuery
from dspy_qvl.reranker.reranker import DEFAULT
from dspy_qvl.reranker.sketch import folded, unfolded
from dspy_qvl.state.entries import encode_array
from tests.conftest import CountingModel, rated

THINGS = "lamp chair kettle phone blender bag cup shoe clock desk".split()
ASKS = "return clean repair charge open fold replace refund assemble connect".split()


def shelf(n=60, seed=0):
    """Judged queries: passages on the same thing and deed, of which those with steps are the relevant ones."""
    rng = random.Random(seed)
    judged = []
    for number in range(n):
        thing, ask = rng.choice(THINGS), rng.choice(ASKS)
        passages, relevance = [], []
        for place in range(8):
            on_topic, useful = place < 5, place % 2 == 0
            what = f"{ask} the {thing}" if on_topic else f"{rng.choice(ASKS)} a {rng.choice(THINGS)}"
            kind = "step one press button then wait" if useful else "proud old firm"
            passages.append(f"{what} {kind} {rng.randint(100, 999)} {number}")
            relevance.append(float(on_topic and useful))
        order = rng.sample(range(8), 8)
        judged.append(
            dspy.Example(
                query=f"how do I {ask} my {thing}",
                passages=[passages[row] for row in order],
                relevance=[relevance[row] for row in order],
            ).with_inputs("query", "passages")
        )
    return judged


JUDGED = shelf()
NEW = shelf(20, seed=7)


def lexical(tmp_path=None, **settings):
    return Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=None, **settings)


def fit(**settings):
    return FitValue(query="query", passages="passages", relevance="relevance", **settings)


@pytest.fixture(scope="module")
def fitted():
    return fit().compile(Reranker(lexical()), trainset=JUDGED)


def mean_ndcg(reranker, judged):
    found = []
    for example in judged:
        ranked = reranker(query=example.query, passages=example.passages)
        relevance = [example.relevance[row] for row in ranked.indices]
        found.append(measures.ndcg(relevance, -np.arange(len(relevance))))
    return np.nanmean(found)


# Order


def test_before_any_training_it_ranks_by_cosine():
    learner = lexical()
    reranker = Reranker(learner)
    example = NEW[0]
    ranked = reranker(query=example.query, passages=example.passages)
    cosines = learner.embed(example.passages) @ learner.embed([example.query])[0]
    assert ranked.indices == np.argsort(-cosines, kind="stable").tolist()
    assert ranked.scores == pytest.approx(np.sort(cosines)[::-1].tolist(), abs=1e-6)
    assert all(type(score) is float for score in ranked.scores)


def test_labels_make_it_better_on_queries_it_never_saw(fitted):
    assert mean_ndcg(fitted, NEW) > mean_ndcg(Reranker(lexical()), NEW) + 0.05


def test_with_few_labels_it_does_not_fall_below_cosine():
    base = mean_ndcg(Reranker(lexical()), NEW)
    for seed in range(5):
        few = fit(cv=3).compile(Reranker(lexical()), trainset=shelf(4, seed=seed + 20))
        assert mean_ndcg(few, NEW) > base - 0.03


def test_the_report_says_what_was_learned_and_a_valset_is_only_reported_on(fitted):
    optimizer = fit()
    again = optimizer.compile(Reranker(lexical()), trainset=JUDGED, valset=NEW)
    assert again.ridge.fitted.coef.tobytes() == fitted.ridge.fitted.coef.tobytes()
    report = optimizer.report["self"]
    assert (report["n_queries"], report["n_passages"]) == (60, 480)
    assert report["cv_ndcg"] > report["cosine_ndcg"]
    assert set(report["features"]) <= {"cosine", "overlap", "length", "text"}
    assert report["val"]["ndcg"] == pytest.approx(mean_ndcg(again, NEW))
    assert report["val"]["cosine_ndcg"] == pytest.approx(mean_ndcg(Reranker(lexical()), NEW), abs=0.01)


def test_queries_whose_passages_are_all_as_good_count_nothing(fitted):
    equal = [dspy.Example(**{**row, "relevance": [1.0] * 8}) for row in NEW]
    optimizer = fit()
    again = optimizer.compile(Reranker(lexical()), trainset=[*equal[:10], *JUDGED, *equal[10:]])
    assert again.ridge.fitted.coef.tobytes() == fitted.ridge.fitted.coef.tobytes()
    assert optimizer.report["self"]["n_queries"] == 60


def test_the_value_of_a_fitted_learner_is_a_feature():
    learner = lexical()
    learner.add_training_examples([(text, float("step" in text)) for row in shelf(20, seed=3) for text in row.passages])
    learner.train()
    reranker = fit().compile(Reranker(learner, features=("cosine", "value")), trainset=JUDGED)
    assert reranker.ridge.fitted.blocks.names == ("cosine", "value")
    assert mean_ndcg(reranker, NEW) > mean_ndcg(Reranker(learner), NEW) + 0.05
    reranker.learner.unfit()
    with pytest.raises(StateError, match="fitted with the learner's value as a feature, but the learner has learned"):
        reranker(query="q", passages=["p"])


def test_values_that_know_the_judged_passages_are_left_out():
    learner = lexical()
    learner.add_training_examples(
        [(text, score) for row in JUDGED for text, score in zip(row.passages, row.relevance, strict=True)]
    )
    learner.train()
    with pytest.warns(QVLWarning, match="480 of 480 judged passages are texts the learner was rated on"):
        reranker = fit().compile(Reranker(learner), trainset=JUDGED)
    assert "value" not in reranker.ridge.fitted.blocks.names


def test_a_learner_that_learned_anew_is_warned_of_once():
    learner = lexical()
    learner.add_training_examples([(text, float("step" in text)) for row in shelf(20, seed=3) for text in row.passages])
    learner.train()
    reranker = fit().compile(Reranker(learner, features=("cosine", "value")), trainset=JUDGED)
    reranker(query="q", passages=["p"])
    reranker.learner.update("something else", 0.5)
    with pytest.warns(QVLWarning, match="the learner has learned anew since"):
        reranker(query="q", passages=["p"])
    reranker(query="q", passages=["p"])


def test_the_first_stages_rank_and_score_are_features_where_they_are_asked_for():
    judged = [
        dspy.Example(
            **{**row.toDict(), "scores": [float(r) for r in row.relevance]},
        )
        for row in JUDGED
    ]
    by_score = fit().compile(Reranker(lexical(), features=("cosine", "score")), trainset=judged)
    example = NEW[0]
    retrieved = dspy.Prediction(
        passages=example.passages, scores=[float(r) for r in example.relevance], indices=list("abcdefgh")
    )
    ranked = by_score(query=example.query, passages=retrieved)
    assert [example.relevance[example.passages.index(p)] for p in ranked.passages] == sorted(example.relevance)[::-1]
    assert [
        found.score for found in by_score.rank(example.query, example.passages, scores=example.relevance)
    ] == ranked.scores
    with pytest.raises(InputError, match="has the first stage's score among its features; give scores="):
        by_score(query=example.query, passages=example.passages)
    with pytest.raises(InputError, match="has the first stage's score among its features"):
        fit().compile(Reranker(lexical(), features=("cosine", "score")), trainset=JUDGED)
    best_first = [
        JudgedQuery(row.query, [row.passages[i] for i in np.argsort(row.relevance)[::-1]], np.sort(row.relevance)[::-1])
        for row in JUDGED
    ]
    by_rank = Reranker(lexical(), features=("cosine", "rank"))
    by_rank.learn(best_first)
    assert by_rank.ridge.fitted.coef_of("rank")[0] > 0


def small():
    return Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)


def found(judged, noise=1.0, seed=0):
    """The same passages as a first stage finds them, which knows more of their relevance than their texts tell."""
    rng = np.random.default_rng(seed)
    ordered = []
    for row in judged:
        relevance = np.array(row.relevance) + rng.integers(0, 2, size=len(row.relevance))
        values = relevance + noise * rng.normal(size=len(relevance))
        order = np.argsort(-values)
        ordered.append(
            dspy.Example(
                query=row.query,
                passages=[row.passages[i] for i in order],
                relevance=relevance[order].tolist(),
                scores=values[order].tolist(),
            ).with_inputs("query", "passages")
        )
    return ordered


def without_scores(judged):
    return [row.without("scores") for row in judged]


def figures(values, judged, k=None):
    """Mean nDCG and reciprocal rank of the values that a function gives the passages of an example."""
    pairs = [(row.relevance, values(row)) for row in judged]
    return {
        "ndcg": np.nanmean([measures.ndcg(*pair, k) for pair in pairs]),
        "mrr": np.nanmean([measures.reciprocal_rank(*pair, k) for pair in pairs]),
    }


def by(reranker):
    """The scores that a reranker gives the passages of an example, in the order they came."""

    def values(row):
        ranked = reranker(query=row.query, passages=row.passages, scores=row.get("scores"))
        return np.array(ranked.scores)[np.argsort(ranked.indices)]

    return values


def came(row):
    return -np.arange(len(row.passages))


def test_by_default_the_order_of_the_first_stage_is_learned_from_where_passages_come_in_one():
    train, new = without_scores(found(JUDGED)), without_scores(found(NEW, seed=1))
    optimizer = fit()
    learned = optimizer.compile(Reranker(small()), trainset=train, valset=new)
    assert "rank" in optimizer.report["self"]["features"]
    plain = fit(first_stage=False).compile(Reranker(small()), trainset=train)
    assert "rank" not in plain.ridge.fitted.blocks.names
    reached, before, first = (figures(values, new)["ndcg"] for values in (by(learned), by(plain), came))
    assert reached > before + 0.02
    assert reached > first + 0.02
    assert optimizer.report["self"]["val"]["ndcg"] == pytest.approx(reached)


@pytest.mark.parametrize("n_queries", [4, 60])
def test_passages_in_no_order_are_learned_from_as_if_there_were_no_first_stage(n_queries):
    by_default = fit(cv=2).compile(Reranker(small()), trainset=JUDGED[:n_queries])
    named = fit(cv=2).compile(Reranker(small(), features=DEFAULT), trainset=JUDGED[:n_queries])
    assert by_default.ridge.dump_state() == named.ridge.dump_state()
    assert by_default(query="q", passages={"a passage"}).scores == named(query="q", passages=["a passage"]).scores


@pytest.mark.parametrize("k", [None, 3])
def test_the_report_shows_the_first_stage_beside_cosine_with_reciprocal_ranks(k):
    train, new = found(JUDGED), found(NEW, seed=1)
    optimizer = fit(k=k)
    learned = optimizer.compile(Reranker(small()), trainset=train, valset=new)
    report, val = optimizer.report["self"], optimizer.report["self"]["val"]
    assert report["k"] == val["k"] == k
    for told, rows in ((report, train), (val, new)):
        for whose, values in (("cosine", by(Reranker(small()))), ("first_stage", came)):
            for measure, figure in figures(values, rows, k).items():
                assert told[f"{whose}_{measure}"] == pytest.approx(figure, abs=1e-3)
    for measure, figure in figures(by(learned), new, k).items():
        assert val[measure] == pytest.approx(figure)
    assert report["cv_mrr"] <= 1
    optimizer.compile(Reranker(small()), trainset=JUDGED, valset=NEW)
    assert np.isnan(optimizer.report["self"]["first_stage_ndcg"])
    assert np.isnan(optimizer.report["self"]["val"]["first_stage_mrr"])


def test_what_is_learned_is_out_of_fold_below_neither_cosine_nor_the_first_stage():
    for seed in range(12):
        optimizer = fit(cv=3, first_stage=True)
        train = without_scores(found(shelf(6, seed=seed), noise=0.1 + 0.2 * seed, seed=seed))
        learned = optimizer.compile(Reranker(small()), trainset=train)
        report = optimizer.report["self"]
        assert report["cv_ndcg"] >= max(report["cosine_ndcg"], report["first_stage_ndcg"])
        if report["alpha"] == np.inf and report["prior"] == "rank":
            assert learned(query=train[0].query, passages=train[0].passages).indices == list(range(8))
        assert ("rank" in learned.ridge.fitted.blocks.names) == ("rank" in report["features"])


def test_passages_sorted_by_their_labels_are_no_first_stage():
    sorted_by_label = without_scores(found(JUDGED, noise=0.01))
    with pytest.warns(QVLWarning, match="puts all relevant ones first in 100% of the judged queries, as if made from"):
        learned = fit().compile(Reranker(small()), trainset=sorted_by_label)
    plain = fit(first_stage=False).compile(Reranker(small()), trainset=sorted_by_label)
    assert learned.ridge.dump_state() == plain.ridge.dump_state()
    said = fit(first_stage=True).compile(Reranker(small()), trainset=sorted_by_label)
    assert "rank" in said.ridge.fitted.blocks.names


def test_the_passages_of_a_retrievers_prediction_come_from_a_first_stage():
    optimizer = fit()
    train = [
        dspy.Example(
            query=row.query,
            relevance=row.relevance,
            passages=dspy.Prediction(passages=row.passages, scores=row.scores),
        )
        for row in found(shelf(30), noise=0.01)
    ]
    learned = optimizer.compile(Reranker(small()), trainset=train)
    assert {"rank", "score"} & set(learned.ridge.fitted.blocks.names)
    assert optimizer.report["self"]["first_stage_ndcg"] > 0.99


def test_a_first_stage_that_ranks_by_the_same_cosine_says_nothing_new():
    cosine = Reranker(small())
    rows = []
    for row in JUDGED:
        ranked = cosine(query=row.query, passages=row.passages)
        passages = dspy.Prediction(passages=ranked.passages, scores=ranked.scores)
        rows.append(
            dspy.Example(query=row.query, passages=passages, relevance=[row.relevance[i] for i in ranked.indices])
        )
    optimizer = fit(first_stage=True)
    learned = optimizer.compile(cosine, trainset=rows)
    assert not {"rank", "score"} & set(learned.ridge.fitted.blocks.names)
    assert optimizer.report["self"]["first_stage_ndcg"] == pytest.approx(optimizer.report["self"]["cosine_ndcg"])


def test_scores_that_were_learned_from_are_asked_for():
    learned = fit().compile(Reranker(small()), trainset=found(JUDGED, 0.5))
    assert "score" in learned.ridge.fitted.blocks.names
    with pytest.raises(InputError, match="give scores=, or a Prediction with scores, or fit it with features that"):
        learned(query=NEW[0].query, passages=NEW[0].passages)


def test_a_relevance_called_scores_is_no_first_stage():
    judged = [dspy.Example(query=row.query, passages=row.passages, scores=row.relevance) for row in JUDGED]
    optimizer = FitValue(query="query", passages="passages", relevance="scores")
    assert "score" not in optimizer.compile(Reranker(small()), trainset=judged).ridge.fitted.blocks.names


def test_a_set_of_passages_is_refused_where_their_order_counts():
    learned = fit(first_stage=True).compile(Reranker(small()), trainset=without_scores(found(JUDGED, 0.2)))
    assert "rank" in learned.ridge.fitted.blocks.names
    for ask in (learned, learned.rank):
        with pytest.raises(InputError, match="a set has no order; give passages as a list, the first stage's best"):
            ask("q", {"a", "b"})


def test_an_order_of_the_first_stage_is_saved_and_loaded(tmp_path):
    learned = fit(first_stage=True).compile(Reranker(small()), trainset=without_scores(found(JUDGED, 0.2)))
    learned.save(tmp_path / "reranker.json")
    again = Reranker(small())
    again.load(tmp_path / "reranker.json")
    for row in NEW[:3]:
        assert again(query=row.query, passages=row.passages) == learned(query=row.query, passages=row.passages)


def test_passages_of_one_score_stay_in_the_order_they_came():
    assert Reranker(small())(query="lamp", passages=["", "lamp", " ", "  "]).indices == [1, 0, 2, 3]


# What goes in and comes out


def test_passages_come_in_every_form_retrievers_give_them(fitted):
    texts = NEW[0].passages
    forms = [
        texts,
        tuple(texts),
        [{"text": text} for text in texts],
        [{"passage": text, "id": n} for n, text in enumerate(texts)],
        [dotdict({"long_text": text}) for text in texts],
        [SimpleNamespace(page_content=text) for text in texts],
        [dspy.Example(content=text) for text in texts],
        dspy.Prediction(passages=texts),
        np.array(texts),
    ]
    for form in forms:
        ranked = fitted(query=NEW[0].query, passages=form)
        assert ranked.indices == fitted(query=NEW[0].query, passages=texts).indices
        items = form.passages if isinstance(form, dspy.Prediction) else form
        assert list(ranked.passages) == [items[row] for row in ranked.indices]


def test_parallel_fields_of_a_prediction_go_along(fitted):
    retrieved = dspy.Prediction(
        passages=NEW[0].passages,
        indices=[10, 11, 12, 13, 14, 15, 16, 17],
        scores=np.arange(8.0),
        titles=list("abcdefgh"),
        query="q",
    )
    ranked = fitted(query=NEW[0].query, passages=retrieved)
    rows = [NEW[0].passages.index(passage) for passage in ranked.passages]
    assert ranked.indices == [10 + row for row in rows]
    assert ranked.titles == ["abcdefgh"[row] for row in rows]
    assert ranked.first_stage_scores == [float(row) for row in rows]
    assert ranked.scores == sorted(ranked.scores, reverse=True)
    assert "query" not in ranked


def test_k_cuts_and_rank_gives_ids(fitted):
    cut = Reranker(lexical(), k=3)
    assert len(cut(query=NEW[0].query, passages=NEW[0].passages).passages) == 3
    ids = [f"doc{n}" for n in range(8)]
    results = fitted.rank(NEW[0].query, NEW[0].passages, doc_ids=ids, metadata=list(range(8)), top_k=5)
    assert [result.rank for result in results] == [1, 2, 3, 4, 5]
    full = fitted(query=NEW[0].query, passages=NEW[0].passages)
    assert [result.text for result in results] == full.passages[:5]
    assert [result.doc_id for result in results] == [ids[row] for row in full.indices[:5]]
    assert [result.metadata for result in results] == full.indices[:5]
    assert [result.score for result in results] == full.scores[:5]
    assert fitted.rank("q", ["a", "b"])[0].doc_id in (0, 1)


def test_none_one_and_the_same_passages(fitted):
    nothing = fitted(query="q", passages=[])
    assert (nothing.passages, nothing.scores, nothing.indices) == ([], [], [])
    assert fitted(query="q", passages=["only"]).indices == [0]
    twice = fitted(query="q", passages=["same", "other", "same"])
    assert twice.scores[twice.indices.index(0)] == twice.scores[twice.indices.index(2)]
    assert twice.indices.index(0) < twice.indices.index(2)
    assert len(fitted(query="", passages=["", "x"]).scores) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r(query=3, passages=["x"]), "query must be a string, but got int"),
        (lambda r: r(query="q", passages="x"), "passages must be a list, but got str"),
        (lambda r: r(query="q", passages=None), "passages must be a list, but got NoneType"),
        (lambda r: r(query="q", passages=["x", 3]), r"passages\[1\] must be a string, or have its text as one of"),
        (lambda r: r(query="q", passages=[{"title": "x"}]), r"passages\[0\] must be a string, or have its text"),
        (lambda r: r(query="q", passages=["\ud83d"]), r"passages\[0\] holds a lone surrogate"),
        (lambda r: r(query="q", passages=dspy.Prediction(x=1)), "the Prediction has no passages; it has x"),
        (lambda r: r(query="q", passages=["x"], scores=[1, 2]), "there are 2 scores for 1 passages"),
        (lambda r: r(query="q", passages=["x"], scores=[float("nan")]), r"scores\[0\] must be finite"),
        (lambda r: r(query="q", passages=["x"], scores=[1e20]), "scores must lie within"),
        (lambda r: r.rank("q", ["x"], doc_ids=[]), "doc_ids has 0 entries for 1 documents"),
        (lambda r: r.rank("q", ["x"], top_k=0), "top_k must be a whole number of at least 1"),
        (lambda r: r.query_vector("q"), "'overlap', 'length', 'value' cannot be had from the passage's vector alone"),
    ],
)
def test_what_cannot_be_ranked_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(Reranker(lexical()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reranker("learner"), "learner must be a Qwen3EmbeddingValueLearner, but got str"),
        (lambda: Reranker(lexical(), k=0), "k must be a whole number"),
        (lambda: Reranker(lexical(), features="cosine"), "features must be a list of cosine, overlap"),
        (lambda: Reranker(lexical(), features="all"), "text, product, or 'auto', but got 'all'"),
        (lambda: fit(k=0), "k must be a whole number of at least 1"),
        (lambda: fit(first_stage="bm25"), "first_stage must be True or False, but got 'bm25'"),
        (
            lambda: Reranker(lexical()).learn([JudgedQuery("q", ["a"], np.ones(1), first_stage="bm25")]),
            r"first_stage of judged\[0\] must be True or False",
        ),
        (lambda: Reranker(lexical(), features=["overlap"]), "features must have 'cosine'"),
        (lambda: Reranker(lexical(), features=["cosine", "x"]), "a reranker has no feature 'x'"),
        (lambda: FitValue(passages="passages"), "say which field it is with query="),
        (lambda: FitValue(query=" "), "neither the name of a field nor a format string"),
        (lambda: fit().compile(lexical(), trainset=JUDGED), "has no Reranker in it"),
        (lambda: fit().compile(Reranker(lexical()), trainset=[]), "trainset must be a list of examples"),
        (lambda: fit().compile(Reranker(lexical()), trainset=JUDGED[:1]), "1 of 1 queries have passages of different"),
        (
            lambda: fit().compile(
                Reranker(lexical()), trainset=[{"query": "q", "passages": ["a", "b"], "relevance": [1]}] * 3
            ),
            r"trainset\[0\] has 2 passages but 1 relevances",
        ),
        (
            lambda: fit().compile(Reranker(lexical()), trainset=[{"query": "q", "passages": ["a"]}] * 3),
            r"trainset\[0\] has no field 'relevance'",
        ),
        (
            lambda: fit().compile(
                Reranker(lexical()), trainset=[{"query": "q", "passages": "a", "relevance": [1]}] * 3
            ),
            r"the passages of trainset\[0\] must be a list",
        ),
    ],
)
def test_what_cannot_be_made_or_fitted_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# An index of vectors


@pytest.mark.parametrize("features", [("cosine", "text"), ("cosine", "text", "product"), ("cosine",)])
@pytest.mark.parametrize("dim", [512, 2500])
def test_any_index_ranks_by_the_query_vector(features, dim):
    import faiss

    learner = Qwen3EmbeddingValueLearner("lexical", dim, cache_dir=None)
    reranker = fit(cv=2).compile(Reranker(learner, features=features), trainset=JUDGED)
    corpus = sorted({passage for example in [*JUDGED, *NEW] for passage in example.passages})
    vectors = reranker.embed_passages(corpus)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    for example in NEW[:5]:
        _, found = index.search(reranker.query_vector(example.query)[None, :], 20)
        ranked = reranker(query=example.query, passages=corpus)
        by_row = dict(zip(ranked.indices, ranked.scores, strict=True))
        assert [by_row[row] for row in found[0].tolist()] == pytest.approx(ranked.scores[:20], abs=1e-5)


def test_a_wide_vector_is_folded_and_inner_products_with_it(tmp_path):
    rng = np.random.default_rng(0)
    vectors, coef = rng.normal(size=(5, 3000)).astype(np.float32), rng.normal(size=1024)
    assert folded(vectors).shape == (5, 1024)
    assert folded(vectors) @ coef == pytest.approx(vectors @ unfolded(coef, 3000), rel=1e-4)
    assert folded(vectors[:, :1024]) is not None
    assert folded(vectors[:, :1024]).tobytes() == vectors[:, :1024].tobytes()
    own = (folded(vectors) ** 2).sum(axis=1) / (vectors**2).sum(axis=1)
    assert own == pytest.approx(1.0, abs=0.2)


# Cost


class Slow(CountingModel):
    """A model that counts, of 384 columns."""

    def __init__(self):
        super().__init__("slow", size=384)


def test_passages_are_embedded_once_and_a_query_costs_one_embedding():
    model = Slow()
    reranker = Reranker(Qwen3EmbeddingValueLearner(embedder=model, cache_dir=None))
    reranker.learn([JudgedQuery(e.query, e.passages, np.array(e.relevance)) for e in JUDGED])
    passages = [f"{text} and some more words to make it longer, number {n}" for n, (text, _) in enumerate(rated(100))]
    reranker(query="a first query", passages=passages)
    taken = []
    for number in range(9):
        asked = len(model.asked)
        start = time.thread_time()
        reranker.learner.embed([f"query number {number}"])
        embedded = time.thread_time()
        reranker(query=f"query number {number}", passages=passages)
        taken.append(time.thread_time() - embedded)
        assert model.asked[asked:] == [f"query number {number}"]
        assert embedded > start
    assert np.median(taken) < 0.006  # 2 ms on a quiet machine: tests/benchmarks/rerank.py


def test_ten_thousand_passages_need_little_memory_on_top(monkeypatch):
    reranker = Reranker(
        Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None), features=("cosine", "text", "product")
    )
    reranker.learn([JudgedQuery(e.query, e.passages, np.array(e.relevance)) for e in JUDGED])
    passages = [f"passage {n} on the {THINGS[n % 10]}" for n in range(10_000)]
    few = reranker(query="how do I clean my lamp", passages=passages[:50])
    whole = reranker(query="how do I clean my lamp", passages=passages)
    assert [s for s, row in zip(whole.scores, whole.indices, strict=True) if row < 50] == few.scores
    tracemalloc.start()
    reranker(query="how do I repair my lamp", passages=passages)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


# The same order everywhere


def test_threads_async_and_batches_make_no_difference(fitted):
    expected = [fitted(query=e.query, passages=e.passages).toDict() for e in NEW]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda e: fitted(query=e.query, passages=e.passages).toDict(), NEW * 3))
    assert together == expected * 3

    async def ask():
        return await asyncio.gather(*(fitted.acall(query=e.query, passages=e.passages) for e in NEW))

    assert [answer.toDict() for answer in asyncio.run(ask())] == expected
    for e, answer in zip(NEW, expected, strict=True):
        alone = [fitted(query=e.query, passages=[passage]).scores[0] for passage in answer["passages"]]
        assert alone == answer["scores"]


def test_an_iterator_of_passages_is_ranked_off_the_event_loop_too(fitted):
    passages = NEW[0].passages
    ranked = asyncio.run(fitted.acall(query=NEW[0].query, passages=iter(passages)))
    assert ranked.passages == fitted(query=NEW[0].query, passages=passages).passages


class Rag(dspy.Module):
    """Search, rerank, answer."""

    def __init__(self, reranker, corpus):
        super().__init__()
        self.search = dspy.retrievers.Embeddings(
            embedder=lambda texts: lexical().embed(list(texts)), corpus=corpus, k=8, brute_force_threshold=10**9
        )
        self.rerank = reranker
        self.answer = dspy.Predict("question, passages -> answer")

    def forward(self, question):
        found = self.rerank(query=question, passages=self.search(question))
        return dspy.Prediction(
            answer=self.answer(question=question, passages=found.passages[:2]).answer, passages=found.passages
        )


CORPUS = sorted({passage for example in [*JUDGED[:20], *NEW] for passage in example.passages})


@pytest.fixture
def complaints(monkeypatch, caplog):
    """What is printed of errors that nobody can catch, and logged."""
    gc.collect()  # what earlier tests left behind complains here
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: said.append(str(one.exc_value)))

    def heard():
        gc.collect()
        return said + [record.getMessage() for record in caplog.records]

    return heard


def test_a_program_with_dspys_retriever_is_fitted_without_a_complaint(complaints):
    program = dspy.Module()
    program.stages = [Rag(Reranker(small()), CORPUS)]
    learned = fit().compile(program, trainset=JUDGED[:8])
    assert complaints() == []
    assert learned.stages[0].search is program.stages[0].search
    assert learned.stages[0].rerank.ridge.fitted is not None
    assert program.stages[0].rerank.ridge.fitted is None
    rows = [dspy.Example(text=text, score=float("step" in text)) for text in CORPUS]
    valued = FitValue(alphas=[1.0]).compile(program, trainset=rows)
    assert complaints() == []
    assert valued.stages[0].rerank.learner.ridge.fitted is not None


def test_a_retriever_that_is_its_own_copy_lets_other_optimizers_copy_without_a_complaint(complaints):
    program = Rag(Reranker(small()), CORPUS)
    search = program.search
    search.__deepcopy__ = lambda memo: search  # the README's advice
    assert program.reset_copy().search is search
    assert complaints() == []


def test_what_else_cannot_be_copied_is_shared_as_dspy_does(complaints):
    program = Rag(Reranker(small()), CORPUS)
    program.lock = threading.Lock()
    learned = fit().compile(program, trainset=JUDGED[:8])
    assert learned.lock is program.lock
    assert learned.rerank.ridge.fitted is not None
    assert program.rerank.ridge.fitted is None


def test_a_rag_program_is_optimized_saved_and_loaded(fitted, tmp_path):
    program = Rag(fitted.deepcopy(), CORPUS)
    lm = dspy.utils.DummyLM([{"answer": "press the button"}] * 100)
    trainset = [dspy.Example(question=e.query).with_inputs("question") for e in NEW[:6]]
    with dspy.context(lm=lm):
        optimizer = dspy.BootstrapFewShot(metric=lambda gold, pred, trace=None: "step" in pred.passages[0])
        better = optimizer.compile(program, trainset=trainset)
        assert better.answer.demos
        expected = [better(question=e.query).passages for e in NEW]
        better.save(tmp_path / "rag.json")
        again = Rag(Reranker(lexical()), CORPUS)
        again.load(tmp_path / "rag.json")
        assert [again(question=e.query).passages for e in NEW] == expected
        assert all("step" in passages[0] for passages in expected)


def test_a_saved_program_ranks_the_same_in_another_process(fitted, tmp_path):
    fitted.save(tmp_path / "reranker", save_program=True)
    code = (
        "import sys, json, dspy\n"
        "from tests.test_reranker import NEW\n"
        "reranker = dspy.load(sys.argv[1], allow_pickle=True)\n"
        "print(json.dumps([reranker(query=e.query, passages=e.passages).scores for e in NEW]))"
    )
    command = [sys.executable, "-c", code, tmp_path / "reranker"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert json.loads(done.stdout) == [fitted(query=e.query, passages=e.passages).scores for e in NEW]


def test_another_model_and_damaged_states_are_refused_and_nothing_is_lost(fitted, tmp_path):
    state = fitted.ridge.content()
    text = json.dumps(fitted.ridge.dump_state(), allow_nan=False)
    assert not any(word in text for word in ("press button", "how do I"))
    other = Reranker(Qwen3EmbeddingValueLearner(embedder=CountingModel(), cache_dir=None))
    other.ridge.load_state(json.loads(text))
    with pytest.raises(StateError, match="fitted with another embedding model"):
        other(query="q", passages=["p"])
    reranker = fitted.deepcopy()
    before = reranker(query=NEW[0].query, passages=NEW[0].passages).scores
    order, blocks = state["order"], state["order"]["blocks"]
    for damage, message in (
        ({"schema": 99}, "has schema 99"),
        ({"order": 3}, "the saved reranker"),
        ({"order": {**order, "coef": 3}}, "'coef' in the saved reranker"),
        ({"order": {**order, "blocks": blocks[:1]}}, r"\(1,\)"),
        ({"order": {**order, "blocks": [*blocks[:1], *blocks]}}, r"has the blocks \('cosine', 'cosine', 'overlap'"),
        ({"order": {**order, "probe": {"texts": [], "vectors": None}}}, "not an array, but None"),
        ({"order": {**order, "identity": {"model": 3}}}, "identity.*: 3"),
        ({"order": {**order, "n_queries": -1}}, "n_queries.* must be a whole number of at least 0, but got -1"),
        ({"order": {**order, "blocks": [{"name": "zz", "width": 1}, *blocks[1:]]}}, r"has the blocks \('zz', 'over"),
        (
            {"order": {**order, "blocks": [{**block, "width": 2} for block in blocks]}},
            r"\(2, 2, 2, 2\) columns",
        ),
        (
            {"order": {**order, "coef": encode_array(np.full(len(fitted.ridge.fitted.coef), 1e200))}},
            r"beyond ±1e\+100",
        ),
    ):
        with pytest.raises(StateError, match=message):
            reranker.ridge.load_state({**state, **damage})
    assert reranker(query=NEW[0].query, passages=NEW[0].passages).scores == before
    reranker.reset_copy()
    assert reranker(query=NEW[0].query, passages=NEW[0].passages).scores == before
    reranker.unfit()
    assert reranker(query=NEW[0].query, passages=NEW[0].passages).scores != before


def test_an_index_is_told_the_features_of_the_order_and_not_of_the_constructor(fitted):
    other = Reranker(lexical(), features=("cosine", "text"))
    other.ridge.load_state(fitted.ridge.dump_state())
    with pytest.raises(InputError, match="'overlap', 'length' cannot be had from the passage's vector alone"):
        other.query_vector("q")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda r: r.learn([JudgedQuery("q", ["a", "b"], [0.0, 1.0])] * 3, cv=1),
            "cv must be a whole number of at least 2",
        ),
        (lambda r: r.learn([{"query": "q"}]), r"judged\[0\] must be a JudgedQuery, but got dict"),
        (
            lambda r: r.learn([JudgedQuery("q", ["a", "b"], [1.0])]),
            r"judged\[0\] must have one finite relevance for each of 2",
        ),
        (lambda r: r.learn([JudgedQuery("q", ["a", "b"], [0.0, 1.0])] * 3), "from at least 2 different ones"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(Reranker(lexical()))


def test_large_first_stage_scores_keep_their_differences():
    judged = [
        dspy.Example(query=e.query, passages=e.passages, relevance=e.relevance, scores=[1e9 + r for r in e.relevance])
        for e in JUDGED
    ]
    optimizer = fit()
    optimizer.compile(Reranker(lexical(), features=("cosine", "score")), trainset=judged)
    assert optimizer.report["self"]["cv_ndcg"] > 0.99


def test_values_and_relevances_beyond_float32_give_finite_scores():
    learner = lexical()
    learner.add_training_examples([(text, score * 1e60) for text, score in rated(40)])
    learner.train()
    judged = [
        JudgedQuery(one.query, list(one.passages), np.array(one.relevance) * 1e60 + number * 1e59)
        for number, one in enumerate(JUDGED[:25])
    ]
    for features in (("cosine", "value", "text"), ("cosine", "text", "product")):
        reranker = Reranker(learner, features=features)
        reranker.learn(judged)
        ranked = reranker(query=NEW[0].query, passages=NEW[0].passages)
        assert np.isfinite(ranked.scores).all()
        assert max(ranked.scores) > 1e40
    vector, passages = reranker.query_vector(NEW[0].query), reranker.embed_passages(NEW[0].passages)
    assert np.isfinite(vector).all()
    assert np.argsort(-(passages.astype(float) @ vector), kind="stable").tolist() == ranked.indices


def test_yes_and_no_are_relevances_too():
    judged = [dspy.Example(query=e.query, passages=e.passages, relevance=[r > 0 for r in e.relevance]) for e in JUDGED]
    by_bool = fit().compile(Reranker(lexical()), trainset=judged)
    assert (
        by_bool.ridge.fitted.coef.tobytes()
        == fit().compile(Reranker(lexical()), trainset=JUDGED).ridge.fitted.coef.tobytes()
    )


def test_the_instruction_stands_before_the_query_only():
    model = CountingModel()
    reranker = Reranker(Qwen3EmbeddingValueLearner(embedder=model, instruction="Find the answer", cache_dir=None))
    reranker(query="where", passages=["here"])
    assert "Instruct: Find the answer\nQuery:where" in model.asked
    assert "here" in model.asked
    assert "Instruct: Find the answer\nQuery:here" not in model.asked


def test_a_learner_in_a_reranker_is_fitted_by_ratings_and_the_reranker_by_judgements():
    program = Reranker(lexical())
    rows = [dspy.Example(text=text, score=float("step" in text)) for e in shelf(20, seed=3) for text in e.passages]
    with_value = FitValue(alphas=[0.3]).compile(program, trainset=rows)
    assert with_value.learner.ridge.fitted is not None
    assert with_value.ridge.fitted is None
    both = fit().compile(with_value, trainset=JUDGED)
    assert "value" in both.ridge.fitted.blocks.names
    assert both.learner.ridge.fitted is with_value.learner.ridge.fitted


def test_scores_that_lie_within_passages_are_the_first_stages():
    rng = np.random.default_rng(0)
    judged, apart = [], []
    for number in range(30):
        relevance = rng.permutation([1.0, 0.0, 0.0, 0.0])
        found = [f"{word} {number}" for word in ("lamp", "cup", "bag", "chair")]
        numbers = (relevance + rng.normal(scale=0.7, size=4)).tolist()
        judged.append(
            {
                "query": f"which {number}",
                "passages": [{"text": text, "score": score} for text, score in zip(found, numbers, strict=True)],
                "relevance": relevance.tolist(),
            }
        )
        apart.append({**judged[-1], "passages": found, "scores": numbers})
    fit = FitValue(query="query", passages="passages", relevance="relevance")
    within = fit.compile(Reranker(Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)), trainset=judged)
    (report,) = fit.report.values()
    beside = fit.compile(Reranker(Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)), trainset=apart)
    assert report == next(iter(fit.report.values()))
    assert "score" in report["features"]
    one, other = judged[0], apart[0]
    ranked = beside(query=other["query"], passages=other["passages"], scores=other["scores"])
    assert within(query=one["query"], passages=one["passages"]).scores == ranked.scores
    assert [row.score for row in within.rank(one["query"], one["passages"])] == ranked.scores
    with pytest.raises(InputError, match="score"):
        within(query=one["query"], passages=other["passages"])
