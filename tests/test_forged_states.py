"""A state in which anything was replaced is refused when it is loaded, or all of it works."""

import copy
import itertools
import math

import numpy as np
import orjson
import pytest

from dspy_qvl import QVLError, Qwen3EmbeddingValueLearner, Reranker, StateError, ValueMetric
from dspy_qvl.reranker.judged import JudgedQuery
from dspy_qvl.state.entries import decode_array, encode_array
from dspy_qvl.state.files import write_file
from tests.conftest import CountingModel, rated

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::dspy_qvl.QVLWarning")

TEXT, OTHER, QUERY = "quick lamp works", "broke, refund please", "which lamp is quick"


def deep(levels):
    nested = []
    for _ in range(levels):
        nested = [nested]
    return nested


NASTY = [
    *(None, True, False, 0, 1, -1, 21, 2**31, 2**63, 2**64, -(2**70), 10**400, 10**5000),
    *(0.5, -0.0, -1.5, 1e-320, 1e-30, 1e16, 1e39, 1e76, 1e160, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", " ", "a", "lexical", "length", "embedding", "judge", "\ud800", "{", "{text", "9" * 5000, "\0", b"bytes"),
    *([], {}, [[]], [None], {"a": 1}, {"": {}}, {"\ud800": 1}, deep(90), deep(2000), [1e308] * 21, ["a"] * 9),
]


def limits(array):
    return np.finfo(array.dtype) if array.dtype.kind == "f" else np.iinfo(array.dtype)


ARRAYS = [
    lambda array: np.zeros_like(array),
    lambda array: np.ones_like(array),
    lambda array: -array,
    lambda array: array[::-1],
    lambda array: array * np.float32(1e-38),
    lambda array: array * np.float32(1e19),
    lambda array: np.full_like(array, limits(array).max),
    lambda array: np.full_like(array, limits(array).min),
    lambda array: np.full_like(array, getattr(limits(array), "smallest_subnormal", 1)),
    lambda array: np.full_like(array, np.nan if array.dtype.kind == "f" else -1),
    lambda array: array[:0],
    lambda array: np.concatenate([array, array]),
    lambda array: array.astype(np.float64 if array.dtype == np.float32 else np.float32),
    lambda array: array.reshape(-1),
    lambda array: array[..., None],
]


def tags(texts):
    """A sparse block of one's own."""
    from scipy.sparse import csr_array

    return csr_array([[len(word) for word in f"{text} a b c".split()[:3]] + 17 * [0.0] for text in texts])


def is_array(node):
    return isinstance(node, dict) and node.keys() == {"dtype", "shape", "base64"}


def places(node, here=()):
    """Every place in a state, arrays and what they are made of among them."""
    if here:
        yield here
    children = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else []
    for key, child in children:
        yield from places(child, (*here, key))


def forgeries(state):
    """The state with one thing in it replaced, renamed or left out, each with what was done."""
    for where in list(places(state)):
        parent = state
        for key in where[:-1]:
            parent = parent[key]
        last, kept = where[-1], parent[where[-1]]
        others = list(NASTY)
        if is_array(kept):
            array = decode_array(kept, "array", kept["dtype"], (None,) * len(kept["shape"]))
            with np.errstate(over="ignore"):
                others += [encode_array(make(array)) for make in ARRAYS]
        if last == "shape":
            others += [[0, 2**63], [2**63, 0], [0], [0, 0], [-1, -1], [10**5000, 1], kept[::-1], [*kept, 1]]
        if isinstance(kept, list) and where[0] == "examples":
            others += [kept[:1], kept[:-1], [kept[0]] * len(kept)]
        for other in others:
            parent[last] = other
            yield f"{'.'.join(map(str, where))} = {type(other).__name__} {ascii_of(other)}", state
            parent[last] = kept
        if isinstance(parent, dict):
            del parent[last]
            yield f"without {'.'.join(map(str, where))}", state
            for name in ("lexical", "embedding", "length", "judge", "", "\ud800", "else"):
                if name not in parent:
                    parent[name] = kept
                    yield f"{'.'.join(map(str, where))} is called {name!a}", state
                    del parent[name]
            parent[last] = kept


def ascii_of(value):
    try:
        return ascii(value)[:60]
    except (ValueError, RecursionError):
        return "…"


def judge(texts):
    return np.array([[len(text), text.count("o")] for text in texts], dtype=float)


def wide(texts):
    return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrst"] for text in texts], dtype=float)


def make(features, paired=False, **settings):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=8), cache_dir=None, features=features, **settings)
    for number, (text, score) in enumerate(rated(9)):
        query = f"which {text.split()[number % 5]}" if paired else None
        learner.add_training_example(text, score, {"reason": f"because {number}", "more": [1, {"a": 2}]}, query)
    learner.optimize_hyperparameters([0.1, 1.0], cv_folds=3, groups=None if paired else [0, 0, 1, 2, 3, 4, 5, 6, 7])
    return learner


def use(learner, query, train):
    """Everything a user does with a value function; every figure of it is finite."""
    asked = {} if query is None else {"query": query}
    kept = learner.current_fit().n_texts > 0
    figures = [learner.predict(TEXT, **asked), *learner.predict_many([TEXT, "", OTHER], query)]
    figures += [value for _, value in learner.rank_texts([TEXT, OTHER], **asked)]
    for settings in ({}, {"pessimism": 1.5}) if kept else ({},):
        metric = ValueMetric(learner, text="answer", query=query and "question", **settings)
        scores = [metric({"question": query}, {"answer": text}) for text in (TEXT, OTHER)]
        assert all(0 < score < 1 for score in scores), scores
        said = metric({"question": query}, {"answer": TEXT}, None, "predictor", None)
        said.feedback.encode()
        figures += [said.score, *(judged.value for judged in metric.log)]
    if kept:
        left = learner.leave_one_out()
        borne = left.leverages < 1 - 1e-12  # what no other text bears on has no value without itself
        figures.append(learner.support(TEXT, **asked))
        ends = learner.predict_interval(
            TEXT, confidence=0.5, **asked
        )  # infinite where all texts are one group, or copies
        assert np.isfinite(ends).all() or ends == (-math.inf, math.inf)
        figures += [*left.values[borne], *left.std[borne], *(cosine for _, cosine in learner.nearest(TEXT, **asked))]
        learner.update(OTHER, 3.0, **asked)
        figures += [learner.predict(TEXT, **asked), *(learner.predict_std(text, **asked) for text in (TEXT, ""))]
    if kept and train:
        learner.train(cv_folds=2)
        figures.append(learner.predict(TEXT, **asked))
    assert np.isfinite(figures).all(), figures
    orjson.dumps(learner.ridge.dump_state())
    again = copy.copy(learner)
    again.ridge = copy.deepcopy(learner.ridge)
    again.ridge.load_state(learner.ridge.dump_state())
    assert again.predict(TEXT, **asked) == learner.predict(TEXT, **asked)


KINDS = {
    "of texts": lambda: make([judge, "length"]),
    "of pairs": lambda: make(["cosine", "overlap", "product", wide], paired=True),
    "with words": lambda: make(["lexical"]),
    "with tags": lambda: make([tags, "length"]),
    "without its texts": lambda: make([judge, "length"], keep_examples=False),
}
ONE_OF = 17  # forgeries is tried, another one at every place; 1 tries all 20,000, which takes two minutes


def sample(state, one_of=ONE_OF):
    return itertools.islice(forgeries(state), 0, None, one_of)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_in_which_anything_was_replaced_is_refused_at_loading_or_works(kind):
    good = KINDS[kind]()
    works = 0
    for number, (what, forged) in enumerate(sample(good.ridge.content())):
        learner = copy.copy(good)
        learner.ridge = copy.deepcopy(good.ridge)
        before = learner.ridge.dump_state()
        try:
            learner.ridge.load_state(forged)
        except StateError:
            assert learner.ridge.dump_state() == before
            continue
        except Exception as error:
            raise AssertionError(f"loading failed: {what}") from error
        try:
            use(learner, QUERY if kind == "of pairs" else None, train=number % 4 == 0)
        except QVLError:
            continue
        except Exception as error:
            raise AssertionError(f"it was loaded, but then failed: {what}") from error
        works += 1
    assert works > 0


def test_a_file_in_whose_settings_anything_was_replaced_is_refused_at_loading_or_works(tmp_path):
    good = make(["length"])
    good.save_model(tmp_path / "good")
    head = good.ridge.content()
    settings = {"model_name": None, "embedding_dim": 8, "instruction": None, "ridge_alpha": 1.0, "features": ["length"]}
    for what, forged in sample(settings, 5):
        try:
            write_file(tmp_path / "forged", {"settings": forged, "head": head})
        except QVLError:  # what JSON cannot hold
            continue
        learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=8), cache_dir=None)
        try:
            learner.load_model(tmp_path / "forged")
        except StateError:
            assert learner.training_texts == []
            continue
        except Exception as error:
            raise AssertionError(f"loading failed: {what}") from error
        assert learner.predict(TEXT) == good.predict(TEXT), what
        learner.save_model(tmp_path / "again")


@pytest.mark.parametrize("features", [("cosine", "text", "product"), ("cosine", "overlap", "length", "value", "rank")])
def test_an_order_in_which_anything_was_replaced_is_refused_at_loading_or_works(features):
    learner = make(None)
    reranker = Reranker(learner, features=features)
    reranker.learn(
        [JudgedQuery(f"what is {n}", [f"{n} is it", f"{n} is not"], np.array([1.0, n % 2 - 1])) for n in range(9)]
    )
    state = copy.deepcopy(reranker.ridge.content())
    for what, forged in sample(state, 11):
        other = Reranker(learner, features=features)
        try:
            other.ridge.load_state(forged)
        except StateError:
            assert other.ridge.fitted is None
            continue
        except Exception as error:
            raise AssertionError(f"loading failed: {what}") from error
        try:
            scores = other(query=QUERY, passages=[TEXT, "", OTHER]).scores
            vector = other.query_vector(QUERY) if "text" in features else np.zeros(1)
        except QVLError:
            continue
        except Exception as error:
            raise AssertionError(f"it was loaded, but then failed: {what}") from error
        assert np.isfinite(scores).all(), what
        assert np.isfinite(vector).all(), what
        other.ridge.load_state(other.ridge.dump_state())


def at(content, *where):
    for key in where[:-1]:
        content = content[key]
    return content, where[-1]


@pytest.mark.parametrize(
    ("where", "forged", "message"),
    [
        (("coef",), encode_array(np.full(11, 1e308)), r"'coef' in the saved fit holds a number beyond ±1e\+140"),
        (
            ("intercept",),
            -1e308,
            r"'intercept' in .* must lie between -1e\+140 and 1e\+140, but is -1e\+308",
        ),
        (("identity", "model"), "\ud800", "'model' of 'identity' in the saved fit holds a lone surrogate"),
        (
            ("blocks", 1, "name"),
            "lexical",
            "has a built-in block as sparse that is not, or is",
        ),
        (("blocks", 0, "width"), 7, "has 10 columns of blocks, but 11 coefficients"),
        (("blocks", 1, "factor"), 1e308, r"'factor' in a saved block must lie between .* and 1e\+37"),
        (
            ("blocks", 1, "factor"),
            1e16,
            r"multiplies the columns of 'judge' with 1e\+16, which makes them up to 9.2e\+17, and 2e\+17 apart",
        ),
        (("blocks", 2, "bounds"), encode_array(np.float32([[9], [3]])), "'bounds' in a saved block must ascend"),
        (("quantiles",), encode_array(np.arange(21.0)[::-1]), "'quantiles' in the saved fit must ascend"),
        (("quantiles",), encode_array(np.zeros(21)), "has quantiles of scores that are all the same"),
        (("coef", "shape"), [0, 2**63], r"'coef' in the saved fit must be float64 of shape \(None,\)"),
        (("vectors", "shape"), [0, 2**63], r"'vectors' in the saved fit must be float32 of shape \(9, 8\)"),
        (("own", "judge", "shape"), [2**63, 0], r"the columns of 'judge' must be float32 of shape \(9, 2\)"),
        (("queried",), {"texts": [], "vectors": encode_array(np.zeros((0, 8), np.float32))}, "vectors of queries, but"),
        (("n_texts",), 1, r"'vectors' in the saved fit must be float32 of shape \(1, 8\), but is .* of shape \[9, 8\]"),
    ],
)
def test_what_would_fail_later_is_refused_when_it_is_loaded(where, forged, message):
    learner = make([judge, "length"])
    state = learner.ridge.content()
    parent, last = at(state["fit"], *where)
    parent[last] = forged
    with pytest.raises(StateError, match=message):
        learner.ridge.load_state(state)


def test_a_fit_of_one_text_is_refused_when_it_is_loaded():
    learner = make([judge, "length"])
    state = learner.ridge.content()
    state["fit"].update(n_texts=1, vectors=None, own={}, groups=None)
    with pytest.raises(StateError, match="at least 2 rated texts, but there are 1"):
        learner.ridge.load_state(state)


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1e-20, 1.0, 1e15, 1e36])
@pytest.mark.parametrize("rating", [1e-70, 7e73])
@pytest.mark.parametrize("width", [1, 20])
def test_whatever_can_be_learned_can_be_loaded_and_used(scale, rating, width):
    def own(texts):
        return np.array([[100 + (len(text) >> column & 7) for column in range(width)] for text in texts]) * scale

    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=8), cache_dir=None, features=[own, "length"])
    learner.add_training_examples([(text, rating * score) for text, score in rated(12)])
    learner.optimize_hyperparameters([1e-12, 1.0], cv_folds=3)
    use(learner, None, train=False)
