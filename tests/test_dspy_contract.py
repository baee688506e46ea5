"""What DSPy 3.4.1 expects, and where it bites: one test a trap, each failing when somebody steps into it.

Traps of the metric's calls are in `test_metric.py`, whole optimizations in `test_optimizers.py`.
"""

import copy
import json
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dspy
import numpy as np
import pytest
from dspy.predict.parameter import Parameter
from dspy.utils import DummyLM

from dspy_qvl import EmbeddingError, Qwen3EmbeddingValueLearner, RidgeHead, StateError, ValueMetric
from tests.conftest import CountingModel, rated

TEXTS = [text for text, _ in rated(12, seed=8)]


class Desk(dspy.Module):
    """A program that answers, and knows what an answer is worth."""

    def __init__(self, value):
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.value = value

    def forward(self, question):
        answer = self.answer(question=question).answer
        return dspy.Prediction(answer=answer, worth=self.value(text=answer).score)


def lexical(tmp_path):
    return Qwen3EmbeddingValueLearner("lexical", 512, cache_dir=tmp_path / "cache")


def everything(learner):
    """Values, standard deviations and feedback, to be compared bit for bit."""
    metric = ValueMetric(learner)
    answers = [metric(None, dspy.Prediction(answer=text), None, "answer", None).toDict() for text in TEXTS]
    return [(learner(text=text).toDict(), answer) for text, answer in zip(TEXTS, answers, strict=True)]


# State, copies, resets


def test_1_only_the_head_is_a_parameter_and_all_of_the_fit_is_in_it(trained):
    for program, name in [(Desk(trained), "value.ridge"), (trained, "ridge")]:
        heads = [found for found, parameter in program.named_parameters() if isinstance(parameter, RidgeHead)]
        assert heads == [name]
    listed = dspy.Module()
    listed.values = [trained]
    assert [name for name, _ in listed.named_parameters()] == ["values[0].ridge"]


def test_2_a_state_may_be_loaded_twice_and_holds_no_key(tmp_path):
    learner = Qwen3EmbeddingValueLearner(
        embedder=CountingModel(), api_key="sk-secret", api_base="http://private.host/v1", cache_dir=tmp_path
    )
    learner.add_training_examples(rated(30))
    learner.train()
    state = learner.ridge.dump_state(json_mode=True)
    assert "sk-secret" not in json.dumps(state)
    assert "private.host" not in json.dumps(state)
    head = RidgeHead()
    for _ in range(2):
        head.load_state(state)
    assert head.dump_state() == state


def test_3_the_head_is_no_module_and_the_learner_has_no_language_model_to_ask(trained):
    assert isinstance(trained.ridge, Parameter)
    assert not isinstance(trained.ridge, dspy.Module)
    lm = DummyLM([{"answer": "love it"}] * 9)
    program = Desk(trained)
    program.set_lm(lm)
    assert program.get_lm() is lm
    best = dspy.BestOfN(module=program, N=2, reward_fn=ValueMetric(trained), threshold=0.99)
    assert best(question="?").answer == "love it"


def test_4_a_reset_keeps_the_fit_and_only_unfit_clears_it(trained):
    before = everything(trained)
    copied = Desk(trained).reset_copy()
    assert everything(copied.value) == before
    copied.value.unfit()
    assert copied.value.ridge.fitted is None
    assert everything(trained) == before


@pytest.mark.parametrize("optimizer", ["LabeledFewShot", "BootstrapFewShot", "BootstrapFewShotWithOptuna"])
def test_4_optimizers_that_begin_with_a_reset_leave_the_fit_alone(trained, optimizer):
    from dspy.teleprompt import BootstrapFewShotWithOptuna

    metric = ValueMetric(trained, text="answer")
    trainset = [dspy.Example(question=f"{n}?", answer="love it").with_inputs("question") for n in range(6)]
    made = {
        "LabeledFewShot": lambda: dspy.LabeledFewShot(k=2).compile(Desk(trained), trainset=trainset),
        "BootstrapFewShot": lambda: dspy.BootstrapFewShot(metric=metric).compile(Desk(trained), trainset=trainset),
        "BootstrapFewShotWithOptuna": lambda: BootstrapFewShotWithOptuna(
            metric=metric, num_candidate_programs=2, num_threads=2
        ).compile(Desk(trained), max_demos=2, trainset=trainset, valset=trainset),
    }
    with dspy.context(lm=DummyLM([{"answer": "love perfect happy"}] * 200)):
        program = made[optimizer]()
    assert everything(program.value) == everything(trained)


def test_5_the_learner_is_never_marked_compiled_and_so_never_left_out(trained, tmp_path):
    from dspy_qvl import FitValue

    rows = [dspy.Example(text=text, score=score + n % 3) for n, (text, score) in enumerate(rated(40))]
    program = FitValue(alphas=[1.0]).compile(Desk(trained), trainset=rows)
    assert not getattr(program.value, "_compiled", False)
    program._compiled = True  # as most optimizers mark what they give back
    assert "value.ridge" in program.dump_state()


def test_6_the_state_is_json_that_says_everything(trained):
    state = Desk(trained).dump_state(json_mode=True)
    text = json.dumps(state, allow_nan=False)
    again = Desk(Qwen3EmbeddingValueLearner("lexical", 512))
    again.load_state(json.loads(text))
    assert everything(again.value) == everything(trained)


def test_7_a_program_is_pickled_without_locks_handles_and_keys(tmp_path):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel(), api_key="sk-secret", cache_dir=tmp_path / "cache")
    learner.add_training_examples(rated(30))
    learner.train()
    everything(learner)
    program = Desk(learner)
    program.save(tmp_path / "program", save_program=True)
    for path in (tmp_path / "program").rglob("*"):
        assert b"sk-secret" not in path.read_bytes()
    loaded = dspy.load(tmp_path / "program", allow_pickle=True)
    assert everything(loaded.value) == everything(learner)
    code = (
        "import sys, json, dspy\n"
        "from tests.test_dspy_contract import everything\n"
        "print(json.dumps(everything(dspy.load(sys.argv[1], allow_pickle=True).value)))"
    )
    command = [sys.executable, "-c", code, tmp_path / "program"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert json.loads(done.stdout) == json.loads(json.dumps(everything(learner)))


def test_8_a_copy_of_a_large_program_takes_no_time_and_no_memory(tmp_path):
    class Large(CountingModel):
        weights = np.zeros(50_000_000, dtype=np.float32)

        def __deepcopy__(self, memo):
            raise AssertionError("a model must never be copied")

    learner = Qwen3EmbeddingValueLearner(embedder=Large(), cache_dir=tmp_path, features=None)
    learner.add_training_examples(rated(10_000))
    learner.train()
    program = Desk(learner)
    program.deepcopy()
    taken, copies = [], []
    for _ in range(20):
        start = time.perf_counter()
        copies.append(program.deepcopy())
        taken.append(time.perf_counter() - start)
    assert np.median(taken) < 0.005
    tracemalloc.start()
    copies.append(program.deepcopy())
    assert tracemalloc.get_traced_memory()[1] < 500_000  # of the 10,000 texts a list of references
    tracemalloc.stop()
    fit = learner.current_fit()
    for twin in copies:
        assert twin.value.ridge.fitted is fit
        assert twin.value._embedding is learner._embedding
        assert twin.value.ridge is not learner.ridge
    with pytest.raises(ValueError, match="read-only"):
        fit.line.coef[0] = 1.0


def test_9_a_reward_is_neither_saved_nor_copied_with_the_program(trained):
    metric = ValueMetric(trained)
    best = dspy.BestOfN(module=dspy.Predict("question -> answer"), N=2, reward_fn=metric, threshold=0.5)
    assert not [name for name in best.dump_state() if "ridge" in name]
    best.deepcopy()


def test_10_refine_shows_the_source_of_the_metric_and_nothing_of_the_learner(trained):
    metric = ValueMetric(trained)
    refine = dspy.Refine(module=dspy.Predict("question -> answer"), N=2, reward_fn=metric, threshold=0.5)
    assert "how people who rated texts like it would rate" in refine.reward_fn_code
    assert len(refine.reward_fn_code) < 1500


# dspy.Embedder


def test_11_a_text_is_embedded_once_in_whatever_batch_it_comes(tmp_path):
    model = CountingModel()
    learner = Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path)
    learner.add_training_examples(rated(20))
    learner.train()
    texts = learner.training_texts
    for batch in (texts, texts[::-1], texts[:1], [*texts, "one new text"]):
        learner.predict_many(batch)
    assert len(model.asked) == len(set(model.asked))


def test_12_two_instances_of_one_class_never_share_a_vector(tmp_path):
    one, other = CountingModel("one"), Rotated("two")
    for _ in range(2):  # the second time from disk
        vectors = [
            Qwen3EmbeddingValueLearner(embedder=model, cache_dir=tmp_path).embed(["a text"])[0]
            for model in (one, other)
        ]
        assert np.array_equal(np.roll(vectors[0], 7), vectors[1])
    assert one.asked == other.asked == ["a text"]


@pytest.mark.parametrize("answer", [np.full((1, 4), np.nan), np.zeros((2, 4)), np.zeros((0,)), "text"])
def test_13_what_a_model_answers_is_checked(tmp_path, answer):
    def embed(texts):
        return answer

    embed.name = "broken"
    learner = Qwen3EmbeddingValueLearner(embedder=embed, cache_dir=tmp_path)
    with pytest.raises(EmbeddingError, match=r"the embedder 'broken' (gave|failed)"):
        learner.embed(["a text"])


def test_14_an_error_of_the_provider_arrives_as_ours_with_its_cause(tmp_path):
    def embed(texts):
        raise TimeoutError("no answer in 60 s")

    embed.name = "slow"
    learner = Qwen3EmbeddingValueLearner(embedder=embed, cache_dir=tmp_path)
    with pytest.raises(EmbeddingError, match="'slow' failed: TimeoutError: no answer in 60 s") as caught:
        learner.embed(["a text"])
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_15_litellm_is_loaded_only_when_it_is_asked():
    code = "import sys, dspy_qvl; dspy_qvl.Qwen3EmbeddingValueLearner('lexical'); print('litellm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Metric calls (see `test_metric.py` as well)


def test_16_a_score_lies_between_a_failure_and_perfection(trained):
    metric = ValueMetric(trained, scale=(5.99, 6.01))
    scores = [metric(None, dspy.Prediction(answer=text)) for text in TEXTS]
    assert 0.0 < min(scores) < max(scores) < 1.0
    assert len(set(scores)) == len({trained.predict(text) for text in TEXTS})


def test_17_bootstrap_keeps_good_demos_only(trained):
    answers = [{"answer": "love perfect excellent happy"}, {"answer": "broke useless awful refund"}] * 4
    trainset = [dspy.Example(question=f"{n}?").with_inputs("question") for n in range(6)]
    with dspy.context(lm=DummyLM(answers)):
        program = dspy.BootstrapFewShot(
            metric=ValueMetric(trained), max_bootstrapped_demos=6, max_labeled_demos=0
        ).compile(dspy.Predict("question -> answer"), trainset=trainset)
    assert len(program.demos) == 3
    assert all("love" in demo.answer for demo in program.demos)


def test_18_a_score_is_a_plain_float_that_evaluate_can_save(trained, tmp_path):
    metric = ValueMetric(trained, pessimism=0.3)
    assert type(metric(None, dspy.Prediction(answer="love it"))) is float
    assert type(metric(None, dspy.Prediction(answer="love it"), [])) is bool
    assert type(metric(None, dspy.Prediction(answer="love it"), None, "x").score) is float
    devset = [dspy.Example(question="?").with_inputs("question")]
    with dspy.context(lm=DummyLM([{"answer": "love it"}])):
        dspy.Evaluate(devset=devset, metric=metric, save_as_json=str(tmp_path / "e.json"))(
            dspy.Predict("question -> answer")
        )
    assert json.loads((tmp_path / "e.json").read_text())


def test_19_a_straggler_that_runs_twice_gets_the_same_answer(trained):
    metric = ValueMetric(trained)
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda n: metric(None, dspy.Prediction(answer=TEXTS[n % 12]), None, "x").toDict(), range(240))
        )
    assert answers == answers[:12] * 20


def test_20_gepa_takes_the_metric_and_reads_its_objectives(trained):
    lm = DummyLM([{"answer": "love it"}])
    assert dspy.GEPA(metric=ValueMetric(trained), max_metric_calls=1, reflection_lm=lm).metric_fn.__name__ == "value"
    from dspy.teleprompt.gepa.gepa_utils import _extract_score_and_objective_scores

    answer = ValueMetric(trained, objectives={})(None, dspy.Prediction(answer="love it"))
    assert _extract_score_and_objective_scores(answer) == (answer.score, {"value": answer.score})


def test_21_evaluate_scores_the_same_in_any_number_of_threads(trained):
    class Say(dspy.Module):
        def forward(self, question):
            return dspy.Prediction(answer=question)

    devset = [dspy.Example(question=text).with_inputs("question") for text, _ in rated(100, seed=4)]
    metric = ValueMetric(trained)
    by_hand = [metric(None, dspy.Prediction(answer=example.question)) for example in devset]
    for n_threads in (1, 8):
        result = dspy.Evaluate(devset=devset, metric=metric, num_threads=n_threads, display_progress=False)(Say())
        assert [score for _, _, score in result.results] == by_hand


# Programs persist


def test_a_program_comes_back_bit_for_bit_in_a_fresh_instance(trained, tmp_path):
    program = Desk(trained)
    program.answer.demos = [dspy.Example(question="Q", answer="A")]
    program.save(tmp_path / "p.json")
    again = Desk(lexical(tmp_path))
    again.load(tmp_path / "p.json")
    assert everything(again.value) == everything(trained)
    assert again.answer.demos[0]["answer"] == "A"


def test_another_model_is_refused_at_first_use(tmp_path):
    learner = Qwen3EmbeddingValueLearner(embedder=CountingModel("one"), cache_dir=tmp_path / "a")
    learner.add_training_examples(rated(30))
    learner.train()
    Desk(learner).save(tmp_path / "p.json")
    other = Desk(Qwen3EmbeddingValueLearner(embedder=CountingModel("two"), cache_dir=tmp_path / "b"))
    other.load(tmp_path / "p.json")
    for use in (lambda: other.value(text="x"), lambda: ValueMetric(other.value), lambda: other.value.predict_std("x")):
        with pytest.raises(StateError, match=r"fitted with another embedding model.*migrate\(\)"):
            use()
    liar = Desk(Qwen3EmbeddingValueLearner(embedder=Rotated("one"), cache_dir=tmp_path / "c"))
    liar.load(tmp_path / "p.json")
    with pytest.raises(StateError, match="gives other vectors for a probe text"):
        liar.value(text="a text it never saw")


class Rotated(CountingModel):
    """A model that calls itself as another one does, and is not it."""

    def __call__(self, texts):
        return np.roll(super().__call__(texts), 7, axis=1)


def test_a_copy_of_a_copy_goes_on_alone(trained):
    twin = copy.deepcopy(Desk(trained))
    before = everything(trained)
    twin.value.update("love it so", 99.0)
    assert everything(trained) == before
    assert everything(twin.value) != before
