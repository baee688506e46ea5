"""The passages of a query, best first."""

import asyncio
import json
import random
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import dspy
import numpy as np
import pytest
from dspy.dsp.utils import dotdict

from dspy_qvl import FitValue, InputError, QVLWarning, Qwen3EmbeddingValueLearner, Reranker, StateError, scores
from dspy_qvl.reranker import JudgedQuery, folded, unfolded
from dspy_qvl.state import encode_array
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
        found.append(scores.ndcg(relevance, -np.arange(len(relevance))))
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


def test_the_value_of_a_fitted_learner_is_a_feature():
    learner = lexical()
    learner.add_training_examples([(text, float("step" in text)) for row in shelf(20, seed=3) for text in row.passages])
    learner.train()
    reranker = fit().compile(Reranker(learner, features=("cosine", "value")), trainset=JUDGED)
    assert reranker.ridge.fitted.names == ("cosine", "value")
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
    assert "value" not in reranker.ridge.fitted.names


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
        (lambda: Reranker(lexical(), features=["overlap"]), "features must have 'cosine'"),
        (lambda: Reranker(lexical(), features=["cosine", "x"]), "a reranker has no feature 'x'"),
        (lambda: FitValue(passages="passages"), "say which field it is with query="),
        (lambda: FitValue(query=" "), "neither the name of a field nor a format string"),
        (lambda: fit().compile(lexical(), trainset=JUDGED), "has no Reranker in it"),
        (lambda: fit().compile(Reranker(lexical()), trainset=[]), "trainset must be a list of rated examples"),
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
    reranker = fit().compile(Reranker(learner, features=features), trainset=JUDGED)
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
        start = time.perf_counter()
        reranker.learner.embed([f"query number {number}"])
        embedded = time.perf_counter()
        reranker(query=f"query number {number}", passages=passages)
        taken.append(time.perf_counter() - embedded)
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
    for damage in (
        {"schema": 99},
        {"order": 3},
        {"order": {**state["order"], "coef": 3}},
        {"order": {**state["order"], "blocks": state["order"]["blocks"][:1]}},
        {"order": {**state["order"], "blocks": [*state["order"]["blocks"][:1], *state["order"]["blocks"]]}},
        {"order": {**state["order"], "probe": {"texts": [], "vectors": None}}},
        {"order": {**state["order"], "identity": {"model": 3}}},
        {"order": {**state["order"], "n_queries": -1}},
        {"order": {**state["order"], "blocks": [{"name": "zz", "width": 1}, *state["order"]["blocks"][1:]]}},
        {"order": {**state["order"], "blocks": [{**block, "width": 2} for block in state["order"]["blocks"]]}},
        {"order": {**state["order"], "coef": encode_array(np.full(len(fitted.ridge.fitted.coef), 1e200))}},
    ):
        with pytest.raises(StateError):
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
    assert "value" in both.ridge.fitted.names
    assert both.learner.ridge.fitted is with_value.learner.ridge.fitted
