"""What cannot be used is refused with one clear error, and nothing learned is lost by it."""

import enum
import itertools
import math
import re
import time
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import dspy
import numpy as np
import orjson
import pandas as pd
import pytest

from dspy_qvl import (
    FitValue,
    InputError,
    ModelUnavailableError,
    NotFittedError,
    QVLError,
    Qwen3EmbeddingValueLearner,
    RankingExample,
    Reranker,
    ValueMetric,
    errors,
)
from tests.conftest import CountingModel, rated

BAD_TEXTS = [
    (None, "must be a string, but got NoneType"),
    (3, "must be a string, but got int: 3"),
    (b"bytes", "must be a string, but got bytes"),
    (["a"], "must be a string, but got list"),
    (math.nan, "must be a string, but got float: nan"),
    ("broken \ud83d emoji", "holds a lone surrogate at position 7"),
]
BAD_SCORES = [
    (math.nan, "must be finite, but got nan"),
    (math.inf, "must be finite, but got inf"),
    (10**400, "must be finite"),
    (None, "must be a number, but got NoneType"),
    (True, r"must be a number, but got bool: True; write float\(True\), which is 1"),
    (np.True_, r"must be a number, but got bool_?: (np\.)?True_?; write float\((np\.)?True_?\), which is 1"),
    ("7", r"must be a number, but got str: '7'; write float\('7'\), which is 7"),
    ("seven", r"must be a number, but got str: 'seven'\.$"),
    ("nan", r"must be a number, but got str: 'nan'\.$"),
    (Decimal("NaN"), "must be finite, but got Decimal"),
    (Decimal("sNaN"), "must be finite, but got Decimal"),
    (Decimal("1e400"), "must be finite, but got Decimal"),
    ([7], "must be a number, but got list"),
    (1j, "must be a number, but got complex"),
    (1e160, "must lie within ±1e\\+75, but got 1e\\+160; rescale the scores"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS)
def test_what_is_no_text_is_refused_in_training_and_scoring_alike(trained, text, message):
    for call in (
        lambda: trained.add_training_example(text, 1.0),
        lambda: trained.add_training_examples([("fine", 1.0), (text, 1.0)]),
        lambda: trained.predict(text),
        lambda: trained(text=text),
        lambda: trained.predict_many(["fine", text]),
        lambda: trained.rank_texts(["fine", text]),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert len(trained.training_texts) == 60


def test_numbers_of_a_database_are_scores_and_kept_beside_them(learner):
    for score in (Decimal("4.50"), Fraction(9, 2), np.float32(4.5), np.float16(4.5)):
        learner.add_training_example("text", score, {"price": Decimal("4.50"), "none": Decimal("NaN")})
        assert (type(learner.training_scores[-1]), learner.training_scores[-1]) == (float, 4.5)
        assert learner.training_metadata[-1] == {"price": 4.5, "none": None}


@pytest.mark.parametrize("nothing", [None, math.nan, pd.NA, pd.NaT])
def test_texts_without_a_group_are_no_group(trained, nothing):
    with pytest.raises(InputError, match=rf"groups\[7\] is {nothing}; every text needs a group"):
        trained.train(groups=[*range(7), nothing, *range(8, 60)])


class Tone(str, enum.Enum):
    WARM = "love it"


class Loud(str):
    def __str__(self):
        return "awful"


def test_what_is_equal_to_a_text_is_that_text_wherever_it_enters(tmp_path):
    def made():
        learner = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=tmp_path)
        learner.add_training_examples(rated(60))
        learner.train()
        return learner

    plain = made()
    value, std, score = (
        plain.predict("love it"),
        plain.predict_std("love it"),
        ValueMetric(plain).judge("love it").score,
    )
    for text in (Tone.WARM, Loud("love it")):
        learner = made()  # asked for the odd one first: what it was worth must not be kept for the plain one
        assert learner.predict(text) == learner.predict("love it") == value
        assert learner.predict_std(text) == learner.predict_std("love it") == std
        assert learner(text=text).score == learner.predict_many([text])[0] == learner.rank_texts([text])[0][1] == value
        metric = ValueMetric(learner, text="reply")
        assert metric.judge(text).score == metric(None, {"reply": text}) == metric(None, {"reply": "love it"}) == score
        assert type(metric.log[0].text) is str
        ranked = Reranker(learner)(query=text, passages=[text, "broke"])
        assert ranked.scores == Reranker(plain)(query="love it", passages=["love it", "broke"]).scores
        learner.add_training_example(text, 9.0, {text: text})
        learner.add_training_examples([RankingExample(text, 9.0, None), (text, 9.0), {"text": text, "score": 9.0}])
        assert {type(one) for one in learner.training_texts} == {str}
        assert learner.training_texts[60:] == ["love it"] * 4
        assert [type(one) for one in (*learner.training_metadata[60], *learner.training_metadata[60].values())] == [
            str
        ] * 2
        assert str(learner.training_metadata[60]) == "{'love it': 'love it'}"
        learner.update(text, 9.0)
        learner.forget("love it")
        assert len(learner.training_texts) == 60


@pytest.mark.parametrize(("score", "message"), BAD_SCORES)
def test_what_is_no_score_is_refused_and_nothing_of_the_list_is_added(trained, score, message):
    with pytest.raises(InputError, match=message):
        trained.add_training_example("text", score)
    with pytest.raises(InputError, match=r"examples\[1\] " + message):
        trained.add_training_examples([("fine", 1.0), ("text", score)])
    assert len(trained.training_texts) == 60


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("just text", r"examples\[0\] must be a RankingExample, a \(text, score\) tuple"),
        (("a", 1.0, None, 4), r"examples\[0\] must be a RankingExample"),
        ({"text": "a"}, r"examples\[0\] has no score; it has \['text'\]"),
        ({"body": "a"}, r"examples\[0\] has no text and no score"),
        (("a", 1.0, "note"), r"the metadata of examples\[0\] must be a dict or None, but got str"),
        (("a", 1.0, {"x": object()}), r"must hold only what JSON can"),
        (("a", 1.0, {1: "x"}), r"the key 1 is not a string"),
        (("a", 1.0, {"x": "\ud800"}), r"must hold only what JSON can"),
        (7, r"examples\[0\] must be a RankingExample, .* but got int: 7"),
    ],
)
def test_what_is_no_rated_text_is_refused(learner, example, message):
    with pytest.raises(InputError, match=message):
        learner.add_training_examples([example])
    assert len(learner.training_texts) == 60


def test_metadata_that_holds_itself_is_refused(learner):
    loop: dict = {}
    loop["self"] = loop
    with pytest.raises(InputError, match="must hold only what JSON can"):
        learner.add_training_example("a", 1.0, loop)


def test_tables_are_refused_where_a_list_is_needed(trained):
    frame = pd.DataFrame({"text": ["a", "b"], "score": [1.0, 2.0]})
    for texts in (frame, np.array("a"), np.array([["a"]])):
        with pytest.raises(InputError, match="texts must have one dimension"):
            trained.rank_texts(texts)
    with pytest.raises(InputError, match=r"examples must have one dimension.*to_dict\('records'\)"):
        trained.add_training_examples(frame)
    trained.add_training_examples(frame.to_dict("records"))
    assert len(trained.rank_texts(frame["text"])) == len(trained.rank_texts(np.array(["a", "b"]))) == 2


@pytest.mark.parametrize("texts", ["one string", {"a": 1}, None, 5])
def test_a_list_of_texts_is_asked_for_where_one_is_needed(trained, texts):
    with pytest.raises(InputError, match="texts must be a list of strings, but got"):
        trained.rank_texts(texts)


@pytest.mark.parametrize("examples", ["ab", {"text": "a", "score": 1.0}, 3])
def test_a_list_of_examples_is_asked_for_where_one_is_needed(learner, examples):
    with pytest.raises(InputError, match="examples must be a list of rated texts, but got"):
        learner.add_training_examples(examples)


@pytest.mark.parametrize("n_texts", [0, 1])
def test_training_on_fewer_than_two_texts_is_refused(tmp_path, n_texts):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    learner.add_training_examples(rated(n_texts))
    for learn in (learner.train, learner.optimize_hyperparameters):
        with pytest.raises(InputError, match=f"needs at least 2 rated texts, but there are {n_texts}"):
            learn()


def test_equal_scores_are_refused_and_the_earlier_fit_stays(trained):
    before = trained.predict("lamp")
    for example in trained.ridge.examples:
        example.score = 3.0
    with pytest.raises(InputError, match="all 60 scores are 3; there is nothing to learn"):
        trained.train()
    assert trained.predict("lamp") == before


def test_one_text_rated_again_and_again_is_refused(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    learner.add_training_examples([("same", 1.0), ("same", 2.0), ("same", 3.0)])
    with pytest.raises(InputError, match="one text rated again and again"):
        learner.train()


@pytest.mark.parametrize("alpha", [0, -1.0, 1e-300, 5e-324, math.nan, math.inf, "1", None, True])
def test_a_penalty_that_is_no_positive_number_is_refused(learner, alpha):
    with pytest.raises(InputError, match="ridge_alpha must be"):
        Qwen3EmbeddingValueLearner("lexical", ridge_alpha=alpha)
    with pytest.raises(InputError, match="ridge_alpha must be"):
        learner.ridge_alpha = alpha
    with pytest.raises(InputError, match=r"alpha_range\[1\] must be"):
        learner.optimize_hyperparameters([1.0, alpha])
    assert learner.ridge_alpha == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cv_folds": 1}, "cv_folds must be a whole number of at least 2, but got 1"),
        ({"cv_folds": 0}, "cv_folds must be a whole number of at least 2"),
        ({"cv_folds": 2.5}, "cv_folds must be a whole number"),
        ({"cv_folds": True}, "cv_folds must be a whole number"),
        ({"validation_split": 1.0}, "validation_split must be at least 0 and below 1, but got 1"),
        ({"validation_split": -0.1}, "validation_split must be at least 0"),
        ({"validation_split": math.nan}, "validation_split must be finite"),
        ({"validation_split": "0.2"}, "validation_split must be a number"),
        ({"groups": [1, 2]}, "groups has 2 entries but there are 60 texts"),
        ({"groups": [1] * 60}, "groups puts every text into one group"),
        ({"groups": [[1]] * 60}, "groups must hold what can be compared, strings, numbers or tuples of them"),
        ({"groups": 5}, "groups must be a list with one entry a text"),
        ({"groups": "author"}, "groups='author' names a metadata entry that text 0 does not have"),
    ],
)
def test_training_settings_out_of_range_are_refused_and_the_fit_stays(trained, settings, message):
    before = trained.predict("lamp")
    with pytest.raises(InputError, match=message):
        trained.train(**settings)
    assert trained.predict("lamp") == before


@pytest.mark.parametrize("alphas", [[], (), "1.0", 1.0, None])
def test_an_empty_or_unusable_alpha_range_is_refused(learner, alphas):
    with pytest.raises(InputError, match="alpha_range"):
        learner.optimize_hyperparameters(alphas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be a whole number of at least 1"),
        ({"embedding_dim": 1}, "embedding_dim must be a whole number of at least 2, but got 1"),
        ({"embedding_dim": "768"}, "embedding_dim must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"random_state": -1}, "random_state must be a whole number of at least 0"),
        ({"instruction": 3}, "instruction must be a string, but got int"),
        ({"cache_dir": 3}, "cache_dir must be a path or None, but got int"),
        ({"keep_examples": "no"}, "keep_examples must be True or False, but got 'no'"),
        ({"api_key": 3}, "api_key must be a string or None, but got int"),
        ({"api_base": b"http://x"}, "api_base must be a string or None, but got bytes"),
        ({"instruction": "\ud800"}, "instruction holds a lone surrogate"),
        ({"embedder": CountingModel()}, "give model_name or embedder, not both"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Qwen3EmbeddingValueLearner("lexical", **settings)


def test_a_cache_dir_that_is_a_file_is_refused_whatever_the_model(tmp_path):
    (tmp_path / "taken").write_text("x")
    for settings in ({"model_name": "lexical"}, {"embedder": CountingModel()}, {}):
        with pytest.raises(InputError, match=r"cache_dir must be a folder, but .*taken is a file"):
            Qwen3EmbeddingValueLearner(cache_dir=tmp_path / "taken", **settings)


def test_an_embedder_that_cannot_be_called_or_has_no_proper_name_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"embedder must be a dspy.Embedder or a callable, but got int"):
        Qwen3EmbeddingValueLearner(embedder=3, cache_dir=tmp_path)
    model = CountingModel()
    model.name = 7
    with pytest.raises(InputError, match="the name of an embedder must be a string, but got int: 7"):
        Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "qwen/qwen-2.5-72b-instruct",
        "openrouter/qwen/qwen-2.5-72b-instruct",
        "Qwen/Qwen3-0.6B",
        "qwen-max",
        "openai/gpt-4o-mini",
        "gpt-5",
        "openai/o3-mini",
        "anthropic/claude-sonnet-4",
        "ollama/llama3.2",
        "meta-llama/Llama-3.1-8B-Instruct",
        "mistralai/Mistral-7B-Instruct-v0.3",
        "google/gemma-2-9b-it",
        "deepseek/deepseek-chat",
        "microsoft/phi-4",
    ],
)
def test_a_chat_model_is_refused_with_the_embedding_model_to_use(name):
    message = "is a chat model and gives no embeddings; use 'Qwen/Qwen3-Embedding-0.6B' in process, 'openrouter/"
    with pytest.raises(InputError, match=message):
        Qwen3EmbeddingValueLearner(name)


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-Embedding-8B",
        "ollama/qwen3-embedding:0.6b",
        "openai/text-embedding-3-small",
        "dashscope/text-embedding-v4",
        "intfloat/multilingual-e5-large-instruct",
        "Alibaba-NLP/gte-Qwen2-7B-instruct",
        "hkunlp/instructor-xl",
        "BAAI/bge-m3",
        "sentence-transformers/all-MiniLM-L6-v2",
        "gemini/gemini-embedding-001",
        "mistral/mistral-embed",
    ],
)
def test_an_embedding_model_is_not_taken_for_a_chat_model(name):
    assert Qwen3EmbeddingValueLearner(name).model_name == name


def test_more_columns_than_a_known_qwen3_model_has_are_refused_at_once():
    with pytest.raises(InputError, match=r"embedding_dim=2000 is more than 'Qwen/Qwen3-Embedding-0.6B' has \(1024\)"):
        Qwen3EmbeddingValueLearner(embedding_dim=2000)


@pytest.mark.parametrize("name", ["", "  ", 3, ["lexical"]])
def test_a_model_name_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="model_name must be the name of an embedding model"):
        Qwen3EmbeddingValueLearner(name)


def test_a_folder_without_a_model_and_an_address_without_a_provider_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no embedding model: neither config.json nor modules.json"):
        Qwen3EmbeddingValueLearner(str(tmp_path))
    with pytest.raises(InputError, match="names no provider; put one first, for instance 'openai/BAAI/bge-m3'"):
        Qwen3EmbeddingValueLearner("BAAI/bge-m3", api_base="http://127.0.0.1:8000/v1")


def test_a_password_in_an_address_is_refused(tmp_path):
    with pytest.raises(InputError, match="api_base must not hold a user or password") as caught:
        Qwen3EmbeddingValueLearner("openai/x-embedding", api_base="http://me:secret@127.0.0.1/v1")
    assert "secret" not in str(caught.value)


def test_scores_that_differ_by_nothing_float64_can_square_are_refused(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path)
    learner.add_training_examples([(text, score * 1e-200) for text, score in rated(10)])
    with pytest.raises(InputError, match="the scores differ by less than 1e-75; rescale them"):
        learner.train()


def test_an_override_that_gives_no_numbers_is_refused(trained):
    trained._get_embedding_vector = lambda text: "ab"
    with pytest.raises(QVLError, match="_get_embedding_vector failed or gave no vector of numbers"):
        trained.predict("lamp")


def test_a_model_that_is_not_here_gives_three_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    learner = Qwen3EmbeddingValueLearner("nobody/no-such-embedding-model", cache_dir=tmp_path)
    learner.add_training_examples(rated(4))
    with pytest.raises(ModelUnavailableError, match=r"Three ways out: pip install sentence-transformers.*lexical"):
        learner.train(cv_folds=2)
    assert len(learner.training_texts) == 4


def test_valuing_before_learning_is_refused(learner):
    for call in (
        lambda: learner.predict("a"),
        lambda: learner.rank_texts(["a"]),
        lambda: learner.predict_many([]),
        lambda: learner(text="a"),
        lambda: learner.ridge.coef_,
        lambda: learner.save_model("never-written"),
    ):
        with pytest.raises(NotFittedError, match=r"nothing was learned yet; add rated texts and call train\(\)"):
            call()


def test_an_override_that_gives_uneven_vectors_is_refused(tmp_path):
    class Uneven(Qwen3EmbeddingValueLearner):
        def _get_embedding_vector(self, text):
            return np.ones(len(text))

    learner = Uneven("lexical", cache_dir=tmp_path)
    learner.add_training_examples(rated(5))
    with pytest.raises(QVLError, match=r"Uneven._get_embedding_vector gave shapes"):
        learner.train()


def test_an_override_of_another_width_than_was_fitted_is_refused(trained):
    trained._get_embedding_vector = lambda text: np.ones(7)
    with pytest.raises(InputError, match="the text has 8 features, but the value function was fitted on 513"):
        trained.predict("lamp")


def test_a_text_of_a_megabyte_is_valued(trained):
    assert math.isfinite(trained.predict("word and \0 nul " * 70_000))


def test_every_error_descends_from_one_root():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, QVLError) for kind in kinds if not issubclass(kind, Warning))


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no")


def nested(levels, inner=1):
    for _ in range(levels):
        inner = {"within": inner}
    return inner


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: 10**5000, "0x31e20801036510f3c591fde5361dc619987896700f4451e1c85ce19029…"),
        (lambda: -(10**5000), "-0x31e20801036510f3c591fde5361dc619987896700f4451e1c85ce1902…"),
        (lambda: [10**5000, 1], "[0x31e20801036510f3c591fde5361dc619987896700f4451e1c85ce1902…"),
        (lambda: Fraction(10**5000), "<Fraction without a repr>"),
        (Unspeakable, "<Unspeakable without a repr>"),
        (lambda: [Unspeakable(), 1], "[<Unspeakable without a repr>, 1]"),
        (lambda: nested(10_000), "{'within': {'within': {'within': {'within': {'within': {'wit…"),
        (lambda: [[7] * 10**6] * 10**6, "[[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7…"),
        (
            lambda: {number: [number] * 100 for number in range(10**4)},
            "{0: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0…",
        ),
    ],
)
def test_whatever_is_shown_in_an_error_is_short_and_never_fails(learner, made, text):
    value = made()
    begun = time.perf_counter()
    assert errors.shown(value) == text
    assert time.perf_counter() - begun < 0.05
    with pytest.raises(InputError, match=re.escape(text)):
        learner.add_training_example(value, 1.0)


@pytest.mark.parametrize(
    "value", [None, True, 7, 10**400, 0.5, "a" * 58, "é\ud800\n", b"a", [], (), {}, set(), (1,), (1, "a"), [[1], {2}]]
)
def test_what_is_shown_of_a_short_value_is_its_repr(value):
    whole = repr(value)
    assert errors.shown(value) == (whole if len(whole) <= 60 else whole[:60] + "…")
    assert errors.shown({"a": value, 1: 2}, 1000) == repr({"a": value, 1: 2})


def test_counts_that_cannot_be_written_down_are_refused(tmp_path):
    number = 10**5000
    for make in (
        lambda: Qwen3EmbeddingValueLearner("lexical", number, cache_dir=None),
        lambda: Qwen3EmbeddingValueLearner("lexical", random_state=number, cache_dir=None),
        lambda: Qwen3EmbeddingValueLearner("lexical", cache_dir=tmp_path).embedding_cache.prune(max_bytes=number),
    ):
        with pytest.raises(InputError, match=r"must be at most 1e\+100, but got 0x31e2"):
            make()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: {"n": 2**64}, "the integer 18446744073709551616 has more than 64 bits; keep it as a string"),
        (lambda: {"n": [{"m": -(2**63) - 1}]}, "the integer -9223372036854775809 has more than 64 bits"),
        (lambda: {"n": 10**5000}, "the integer 0x31e2.* has more than 64 bits"),
        (lambda: {"n": nested(100)}, "lie within each other more than 100 deep; keep less, or a string"),
        (lambda: {"n": [[[nested(98)]]]}, "lie within each other more than 100 deep"),
        (lambda: {"n": nested(10_000)}, "lie within each other more than 100 deep"),
    ],
)
def test_metadata_that_json_elsewhere_cannot_hold_is_refused_when_it_is_added(trained, made, message):
    metadata = made()
    for add in (
        lambda: trained.add_training_example("text", 1.0, metadata),
        lambda: trained.add_training_examples([("fine", 1.0), ("text", 1.0, metadata)]),
        lambda: trained.update("text", 1.0, metadata),
    ):
        with pytest.raises(InputError, match=message):
            add()
    assert len(trained.training_texts) == 60


def test_metadata_within_the_limits_comes_back_from_every_way_of_saving(trained, tmp_path):
    trained.update("text", 1.0, {"n": [2**64 - 1, -(2**63)], "deep": nested(99), "none": math.nan, "far": -math.inf})
    kept = {"n": [2**64 - 1, -(2**63)], "deep": nested(99), "none": None, "far": None}
    assert trained.training_metadata[-1] == kept
    trained.save_model(tmp_path / "m")
    trained.save(tmp_path / "m.json")
    for load in (lambda one: one.load_model(tmp_path / "m"), lambda one: one.load(tmp_path / "m.json")):
        again = Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=tmp_path)
        load(again)
        assert again.deepcopy().training_metadata[-1] == kept
    assert orjson.loads(orjson.dumps(trained.ridge.content()))["examples"]["metadata"][-1] == kept


def test_metadata_saved_before_with_larger_integers_is_still_read(trained):
    state = trained.ridge.content()
    state["examples"]["metadata"][0] = {"id": 2**127}
    trained.ridge.load_state(state)
    trained.ridge.load_state(trained.ridge.dump_state())
    assert trained.training_metadata[0] == {"id": 2**127}


def test_names_that_could_not_be_saved_are_refused_at_once(tmp_path):
    def block(texts):
        return [len(text) for text in texts]

    block.name = "broken \ud800"
    for make, what in (
        (
            lambda: Qwen3EmbeddingValueLearner("lexical", features=block, cache_dir=None),
            "the name of a block of features",
        ),
        (lambda: Qwen3EmbeddingValueLearner("owner/\ud800", cache_dir=None), "the name of the embedding model"),
        (
            lambda: Qwen3EmbeddingValueLearner(embedder=CountingModel("\ud800"), cache_dir=tmp_path),
            "the name of the embedding model",
        ),
    ):
        with pytest.raises(InputError, match=f"{what} holds a lone surrogate"):
            make()


def test_the_fields_of_what_is_no_rated_text_are_told_whatever_they_are(learner):
    with pytest.raises(InputError, match=r"has no text and no score; it has \[1, 'body', \(2, 3\)\]"):
        learner.add_training_examples([{1: 2, "body": 3, (2, 3): 4}])


@pytest.mark.parametrize("groups", [{"a": 1}, {1, 2}, frozenset({1, 2})])
def test_groups_that_have_no_order_are_refused(learner, groups):
    with pytest.raises(InputError, match=r"groups must be a list with one entry a text, but got (dict|set|frozenset)"):
        learner.train(groups=groups)


def test_a_group_with_nothing_in_a_part_of_it_is_refused(learner):
    with pytest.raises(InputError, match=r"groups\[1\] is \(nan, 1\); every text needs a group"):
        learner.train(groups=[(0.0 if row != 1 else float("nan"), row % 9) for row in range(60)])


ODD = [
    lambda: 10**5000,
    lambda: -(10**5000),
    lambda: [10**5000],
    lambda: {10**5000: 1},
    Unspeakable,
    lambda: [Unspeakable()],
    lambda: nested(3000),
    lambda: np.array(1.0),
    lambda: np.array([[1, 2]]),
    lambda: "x" * 10**5,
    lambda: "\ud800",
    lambda: "\0",
    lambda: b"x",
    lambda: object,
    lambda: math.nan,
    lambda: 2**70,
    lambda: True,
    lambda: None,
]


def calls(learner, folder):
    """Everything that takes arguments, and arguments that it takes."""
    rows = [dspy.Example(text=text, score=score) for text, score in rated(9)]
    metric, reranker = ValueMetric(learner, text="{a} {b}"), Reranker(learner, features=["cosine", "score"])
    passages = {"query": "a", "passages": ["a", "b"], "scores": [1.0, 2.0]}
    documents = {"docs": ["a", "b"], "doc_ids": [1, 2], "metadata": [1, 2], "top_k": 1, "query": "a", "scores": [1, 2]}
    cache = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=folder / "cache").embedding_cache
    yield Qwen3EmbeddingValueLearner, {"model_name": "lexical", "cache_dir": None, **dict.fromkeys(SETTINGS)}
    yield Qwen3EmbeddingValueLearner, {"model_name": "owner/e5", "cache_dir": None, **dict.fromkeys(SETTINGS)}
    yield Qwen3EmbeddingValueLearner, {"model_name": "openai/text-embedding-3-small", **dict.fromkeys(SETTINGS)}
    yield learner.deepcopy().add_training_example, {"text": "a", "score": 1.0, "metadata": None, "query": None}
    yield learner.deepcopy().update, {"text": "a", "score": 1.0, "metadata": None}
    yield learner.deepcopy().train, {"validation_split": 0.2, "cv_folds": 2, "groups": None}
    yield learner.deepcopy().optimize_hyperparameters, {"alpha_range": [1.0], "cv_folds": 2, "groups": None}
    yield learner.predict_many, {"texts": ["a"], "queries": None}
    yield learner.embed, {"texts": ["a"], "instruct": True}
    yield learner.save_model, {"path": folder / "m"}
    yield learner.load_model, {"path": folder / "m"}
    yield ValueMetric, {"learner": learner, **dict.fromkeys(OF_METRIC)}
    yield (lambda **given: metric(given, given)), {"a": "a", "b": "b"}
    yield Reranker, {"learner": learner, "k": 1, "features": ["cosine"]}
    yield reranker, passages
    yield reranker.rank, documents
    yield FitValue, {"text": "text", "score": "score", "group": None, "alphas": [1.0], "cv": 2, "learner": None}
    yield (
        (lambda **row: FitValue(cv=2).compile(learner, trainset=[dspy.Example(**row), *rows])),
        {"text": "a", "score": 1},
    )
    yield cache.prune, {"max_bytes": 1, "older_than": None, "model": None}
    yield cache.import_, {"path": folder / "m"}


SETTINGS = "embedding_dim embedder instruction batch_size features device timeout max_concurrency".split()
OF_METRIC = "text query scale objectives".split()


@pytest.mark.filterwarnings("ignore::dspy_qvl.QVLWarning")
def test_no_argument_makes_another_error_than_ours(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=None)
    learner.add_training_examples(rated(9))
    learner.train(cv_folds=2)
    for call, given in calls(learner, tmp_path):
        usual = {name: value for name, value in given.items() if value is not None}
        for name, make in itertools.product(given, ODD):
            said = ""
            try:
                call(**{**usual, name: make()})
            except QVLError as error:
                said = str(error)
            except Exception as error:
                raise AssertionError(f"{call} failed with {name}={errors.shown(make())}") from error
            assert len(said) < 1000, (call, name)


def test_a_penalty_that_float64_cannot_work_with_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"ridge_alpha must be at most 1e\+100, but got 1e\+308"):
        Qwen3EmbeddingValueLearner("lexical", ridge_alpha=1e308)
    learner = Qwen3EmbeddingValueLearner("lexical", 64, ridge_alpha=1e100, cache_dir=None)
    learner.add_training_examples(rated(20))
    learner.train()
    learner.update("a lamp", 1.0)
    learner.save_model(tmp_path / "m")
    assert math.isfinite(learner.predict("a cup"))


def test_every_warning_points_at_the_line_of_the_caller():
    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=None)
    learner.add_training_examples(rated(12))
    two = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=None)
    two.add_training_examples([("a good one", 1.0), ("a bad one", 2.0)])
    trainset = [dspy.Example(text=text, score=score) for text, score in rated(12)]
    unrated = [dspy.Example(text=text) for text, _ in rated(3)]
    calls = {
        "cv_folds": lambda: learner.optimize_hyperparameters(cv_folds=50),
        "nothing is held out": lambda: two.train(),
        "no example of the valset": lambda: FitValue().compile(learner, trainset=trainset, valset=unrated),
        "embedder has no name": lambda: Qwen3EmbeddingValueLearner(embedder=lambda texts: [[1.0]] * len(texts)),
    }
    for message, call in calls.items():
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            call()
        files = {Path(one.filename).name for one in given if message in str(one.message)}
        assert files == {"test_bad_input.py"}, (message, [str(one.message)[:80] for one in given])
