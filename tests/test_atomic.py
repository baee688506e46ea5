"""Changes are whole, one at a time, and seen from outside in one step; interrupted ones have happened or have not."""

import asyncio
import copy
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from dspy_qvl import InputError, NotFittedError, Qwen3EmbeddingValueLearner, Reranker
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.memo import Lock
from dspy_qvl.reranker.judged import JudgedQuery
from dspy_qvl.state.drafts import ABANDONED_SECONDS
from dspy_qvl.state.files import write_file
from tests.benchmarks.together import Crowd, is_the_fit_of_its_texts
from tests.conftest import CountingModel, rated
from tests.interrupts import interrupted, may_be_swallowed, needs_a_timer, seconds_of

NEW = [text for text, _ in rated(20, seed=8)]


class Gate(CountingModel):
    """A model that waits, from when it is shut until it is opened."""

    def __init__(self) -> None:
        super().__init__(size=16)
        self.waiting, self.open = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.waiting.set()
        assert self.open.wait(30)
        return super().__call__(texts)

    def shut(self) -> None:
        self.waiting.clear()
        self.open.clear()


def make(model=None, features=None, n: int = 40) -> Qwen3EmbeddingValueLearner:
    learner = Qwen3EmbeddingValueLearner(embedder=model or CountingModel(size=16), cache_dir=None, features=features)
    learner.add_training_examples(rated(n))
    learner.train(cv_folds=2)
    return learner


@pytest.fixture
def other(tmp_path) -> Qwen3EmbeddingValueLearner:
    """Another value function, of other texts and another penalty, that is saved as "other"."""
    learner = make(n=25)
    learner.forget(rated(25)[3][0])
    learner.ridge_alpha = 0.3
    learner.train(cv_folds=2)
    learner.save_model(tmp_path / "other")
    return learner


# One at a time


CHANGES: dict[str, Callable] = {
    "load_model": lambda learner, folder, state: learner.load_model(folder / "other"),
    "load_state": lambda learner, folder, state: learner.ridge.load_state(state),
    "unfit": lambda learner, folder, state: learner.unfit(),
    "add": lambda learner, folder, state: learner.add_training_example("late", 3.0),
    "examples": lambda learner, folder, state: setattr(learner.ridge, "examples", rated_examples(5)),
    "alpha": lambda learner, folder, state: setattr(learner, "ridge_alpha", 7.0),
    "fitted": lambda learner, folder, state: setattr(learner.ridge, "fitted", None),
    "forget": lambda learner, folder, state: learner.forget(rated(40)[0][0]),
    "update": lambda learner, folder, state: learner.update("late", 3.0),
}


def rated_examples(n: int):
    learner = Qwen3EmbeddingValueLearner("lexical", 8, cache_dir=None)
    learner.add_training_examples(rated(n, seed=5))
    return learner.ridge.examples


@pytest.mark.parametrize(
    ("during", "change"),
    [
        *(("train", change) for change in CHANGES),
        *(("update", change) for change in ("load_model", "load_state", "add")),
    ],
)
def test_a_change_waits_for_the_one_that_is_being_made_and_readers_do_not(during, change, tmp_path, other):
    model, state = Gate(), json.loads(json.dumps(other.ridge.dump_state()))
    learner, alone = make(model), make()
    begin = {
        "train": lambda one: (one.add_training_example("a new one", 5.0), one.train(cv_folds=2)),
        "update": lambda one: one.update("a new one", 5.0),
    }[during]
    known = learner.predict(NEW[0])
    model.shut()
    changes = [threading.Thread(target=begin, args=(learner,))]
    changes[0].start()
    assert model.waiting.wait(30)
    changes.append(threading.Thread(target=CHANGES[change], args=(learner, tmp_path, state)))
    changes[1].start()
    for read in (lambda: learner.predict(NEW[0]), lambda: copy.deepcopy(learner).predict(NEW[0])):
        assert read() == known
    learner.save_model(tmp_path / "meanwhile")
    model.open.set()
    for thread in changes:
        thread.join(30)
    begin(alone)
    CHANGES[change](alone, tmp_path, state)
    # The second change came wholly after the first.
    assert learner.ridge.content() == alone.ridge.content()
    meanwhile = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None)
    meanwhile.load_model(tmp_path / "meanwhile")
    assert meanwhile.predict(NEW[0]) == known


def test_files_that_are_loaded_while_it_learns_are_taken_over_whole(tmp_path, other):
    learner, want = make(), other.predict_many(NEW)
    stop = threading.Event()

    def learn() -> None:
        numbers = iter(range(10**6))
        while not stop.is_set():
            learner.update(f"text {next(numbers)}", 3.0)

    learning = threading.Thread(target=learn)
    learning.start()
    for _ in range(20):
        learner.load_model(tmp_path / "other")
    stop.set()
    learning.join(30)
    learner.save_model(tmp_path / "m")
    assert is_the_fit_of_its_texts(learner)
    assert learner.training_texts[: len(other.training_texts)] == other.training_texts
    learner.load_model(tmp_path / "other")
    assert learner.predict_many(NEW).tobytes() == want.tobytes()


class Meddler(CountingModel):
    """A model that changes the learner that asks it."""

    change = None

    def __call__(self, texts: list[str]) -> np.ndarray:
        change, self.change = self.change, None
        if change is not None:
            change()
        return super().__call__(texts)


@pytest.mark.parametrize("during", ["train", "optimize", "update", "forget"])
@pytest.mark.parametrize("change", ["load_model", "load_state", "forget", "update"])
def test_a_model_that_changes_the_learner_it_serves_makes_no_hybrid(during, change, tmp_path, other):
    state, model = other.ridge.dump_state(), Meddler(size=16)
    learner = make(model)
    learner.add_training_example("a new one", 5.0)
    begin = {
        "train": lambda: learner.train(cv_folds=2),
        "optimize": lambda: learner.optimize_hyperparameters([1.0], cv_folds=2),
        "update": lambda: learner.update("another", 5.0),
        "forget": lambda: learner.forget(rated(40)[1][0]),
    }[during]
    if during == "forget":
        learner.embedding_cache.clear()  # so that the model is asked
    model.change = lambda: CHANGES[change](learner, tmp_path, state)
    with pytest.raises(InputError, match="was changed by the embedding model or a feature that it asked while"):
        begin()
    alone = make()
    alone.add_training_example("a new one", 5.0)
    CHANGES[change](alone, tmp_path, state)
    assert learner.ridge.content() == alone.ridge.content()


def test_a_model_may_ask_the_learner_it_serves_from_any_thread(tmp_path):
    class Asking(CountingModel):
        learner = None

        def __call__(self, texts: list[str]) -> np.ndarray:
            learner, self.learner = self.learner, None
            if learner is not None:
                values = []
                thread = threading.Thread(target=lambda: values.append(learner.predict(rated(40)[0][0])))
                thread.start()
                thread.join(10)
                assert values == [learner.predict(rated(40)[0][0])]
                copy.deepcopy(learner).update("one", 3.0)
                learner.save_model(tmp_path / "m")
            return super().__call__(texts)

    model = Asking(size=16)
    learner = make(model)
    model.learner = learner
    learner.update("new", 3.0)
    assert learner.training_texts[-1] == "new"


# Seen in one step


def test_a_text_is_valued_by_one_fit_whatever_is_loaded_meanwhile(tmp_path):
    narrow = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None, features=["length"])
    narrow.add_training_examples(rated(30))
    narrow.train()
    narrow.save_model(tmp_path / "narrow")

    class Loads(Qwen3EmbeddingValueLearner):
        def _get_embedding_vector(self, text):
            if getattr(self, "armed", False):
                self.armed = False
                self.load_model(tmp_path / "narrow")
            return super()._get_embedding_vector(text)

    learner = Loads("lexical", cache_dir=None)
    learner.add_training_examples(rated(40))
    learner.train()
    before, wide = learner.predict_many(NEW), learner.embedding_dim
    reads: list[Callable] = [
        lambda one: one.predict_many(NEW),
        lambda one: [one.predict(NEW[0])],
        lambda one: [one(text=NEW[0]).score],
        lambda one: [one.inspection().fit.predict(one._columns(one.current_fit())(NEW[:1]).X)[0]],
    ]
    for read in reads:
        one = copy.deepcopy(learner)
        one.armed = True
        values = read(one)
        assert list(values) == list(before[: len(values)])
        assert (one.embedding_dim, wide) == (64, 4096)
        assert one.features == ("length",)
        np.testing.assert_array_equal(one.predict_many(NEW), narrow.predict_many(NEW))


def test_the_async_call_answers_by_the_fit_it_began_with(tmp_path):
    paired = Qwen3EmbeddingValueLearner(embedder=CountingModel(size=16), cache_dir=None, features=None)
    for text, score in rated(30):
        paired.add_training_example(text, score, query="lamp")
    paired.optimize_hyperparameters([1.0], cv_folds=2)
    model = Gate()
    learner = make(model)
    want = copy.deepcopy(learner).predict(NEW[1])
    learner.embedding_cache.clear()
    model.shut()

    async def ask() -> float:
        answer = asyncio.ensure_future(learner.acall(text=NEW[1]))
        while not model.waiting.is_set():
            await asyncio.sleep(0.001)
        learner.ridge.load_state(paired.ridge.dump_state())
        model.open.set()
        return (await answer).score

    assert asyncio.run(ask()) == want
    with pytest.raises(InputError, match="say which with query="):
        learner.predict(NEW[1])


def test_a_reranker_learns_and_ranks_with_one_state_of_its_learner():
    judged = [
        JudgedQuery(
            query, [text for text, _ in rated(6, seed=row)], np.array([score for _, score in rated(6, seed=row)])
        )
        for row, query in enumerate(["lamp", "cup", "chair", "phone"], start=20)
    ]
    calls = []

    def meddling(texts):
        calls.append(texts)
        if len(calls) == 3:  # two queries' passages have been valued
            learner.update("a perfect lamp", 9.0)
        return [[len(text)] for text in texts]

    model = Meddler(size=16)
    learner = make(model, meddling)
    at_rest = Reranker(copy.deepcopy(learner), features=("cosine", "value"))
    reranker = Reranker(learner, features=("cosine", "value"))
    calls.clear()
    reranker.learn(judged, cv=2)
    assert len(learner.training_texts) == 41
    at_rest.learn(judged, cv=2)
    assert reranker.ridge.content() == at_rest.ridge.content()
    assert reranker.ridge.fitted.value_of != learner.current_fit().digest
    twin = copy.deepcopy(reranker)
    model.change = reranker.unfit
    passages = ["a happy lamp that nobody knows", "a broken lamp that nobody knows", "lamp"]
    with pytest.warns(UserWarning, match="the learner has learned anew"):
        ranked = reranker(query="lamp", passages=passages)
    assert reranker.ridge.fitted is None
    with pytest.warns(UserWarning, match="the learner has learned anew"):
        assert ranked.scores == twin(query="lamp", passages=passages).scores


@pytest.mark.filterwarnings("ignore::dspy_qvl.QVLWarning")
def test_everything_at_once_writes_nothing_but_whole_value_functions(tmp_path):
    crowd = Crowd(tmp_path)
    crowd.run(float(os.environ.get("SECONDS_TOGETHER", "3")))
    assert crowd.failed == []
    assert crowd.wrong() == []
    assert {"train", "update", "load_model", "load_state", "save_model", "pickle"} <= crowd.done.keys()


# Interrupted


SECONDS = float(os.environ.get("SECONDS_OF_INTERRUPTS", "0.7"))


@needs_a_timer
@may_be_swallowed
def test_an_interrupted_change_has_happened_or_has_not():
    rng, learner = random.Random(0), make(features="length")
    numbers = iter(range(100))
    longest = 2 * seconds_of(lambda: learner.update(f"warm {next(numbers)}", 3.0))
    n_others, n_struck, end = len(learner.training_texts), 0, time.monotonic() + SECONDS
    for number in range(10**6):
        if time.monotonic() > end:
            break
        text, before = f"text {number}", learner.ridge.now
        n_struck += interrupted(lambda: learner.update(text, 5.0), rng, longest)  # noqa: B023
        now = learner.ridge.now
        assert now is before or (now.examples[-1].text, now.fitted.n_texts) == (text, len(now.examples))
        if now is before:  # another try does not rate it twice
            learner.update(text, 5.0)
        assert learner.training_texts.count(text) == 1
        n_struck += interrupted(lambda: learner.forget(text), rng, longest)  # noqa: B023
        assert learner.training_texts.count(text) == learner.ridge.fitted.n_texts - n_others
        if learner.training_texts.count(text):
            learner.forget(text)
    assert n_struck > 20
    assert is_the_fit_of_its_texts(learner)
    # And nothing stays locked.
    other = threading.Thread(target=learner.update, args=("from another thread", 3.0), daemon=True)
    other.start()
    other.join(20)
    assert learner.training_texts[-1] == "from another thread"
    print(n_struck, "interrupts")


@needs_a_timer
@may_be_swallowed
def test_an_interrupted_save_leaves_a_whole_file_and_no_draft(tmp_path):
    rng, content = random.Random(0), {"text": "x" * 200_000}
    write_file(tmp_path / "m", content)
    whole = (tmp_path / "m").read_bytes()
    longest = 2 * seconds_of(lambda: write_file(tmp_path / "m", content))
    n_struck, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        n_struck += interrupted(lambda: write_file(tmp_path / "m", content), rng, longest)
        assert os.listdir(tmp_path) == ["m"]
        assert (tmp_path / "m").read_bytes() == whole
    assert n_struck > 5
    print(n_struck, "interrupts")


def test_drafts_that_a_killed_process_left_are_removed_and_live_ones_are_not(tmp_path, trained):
    old = [".m.qvl.0a1b2c3d4e5f6071.new", ".m.qvl.x1_yz9ab.new"]
    kept = [
        ".m.qvl.ffffffffffffffff.new",
        ".n.qvl.0a1b2c3d4e5f6071.new",
        ".m.qvl.new",
        "xm.qvl.12-34.new",
        ".m.qvl.A.new",
    ]
    for name in (*old, *kept):
        (tmp_path / name).write_text("a draft")
        if name != kept[0]:  # that one is being written by somebody
            then = time.time() - 2 * ABANDONED_SECONDS
            os.utime(tmp_path / name, (then, then))
    trained.save_model(tmp_path / "m.qvl")
    assert sorted(set(os.listdir(tmp_path)) - {"cache"}) == sorted([*kept, "m.qvl"])


def test_a_new_file_has_the_usual_mode_and_a_private_one_stays_private(tmp_path):
    write_file(tmp_path / "m", {})
    (tmp_path / "usual").touch()
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "usual").stat().st_mode
    os.chmod(tmp_path / "m", 0o600)
    write_file(tmp_path / "m", {})
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600


# Locks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_process_forked_while_another_thread_learns_can_learn_too():
    model = Gate()
    learner = make(model)
    model.shut()
    learning = threading.Thread(target=learner.update, args=("new", 3.0))
    learning.start()
    assert model.waiting.wait(30)
    child = os.fork()
    if not child:
        signal.alarm(20)
        learner.forget(rated(40)[0][0])
        os._exit(0 if len(learner.training_texts) == 39 else 1)
    _, status = os.waitpid(child, 0)
    model.open.set()
    learning.join(30)
    assert os.waitstatus_to_exitcode(status) == 0
    assert learner.training_texts[-1] == "new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing here")
def test_a_lock_that_the_forking_thread_holds_is_held_in_the_child():
    lock = Lock()
    with lock.held:
        child = os.fork()
        if not child:
            free = []
            other = threading.Thread(target=lambda: free.append(lock.held.acquire(blocking=False)))
            other.start()
            other.join()
            os._exit(int(free[0]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Attributes of the head


def test_the_parts_of_a_head_are_read_and_set_as_attributes():
    head = RidgeHead(2.0)
    assert (head.examples, head.alpha, head.alpha_tuned, head.weights, head.template) == ((), 2.0, False, None, None)
    head.alpha, head.alpha_tuned, head.weights, head.template, head.query_template = 3.0, True, {"a": 1.0}, "x", "y"
    head.examples = rated_examples(3)
    assert (head.alpha, head.alpha_tuned, head.weights) == (3.0, True, {"a": 1.0})
    assert (head.template, head.query_template, len(head.examples), head.fitted) == ("x", "y", 3, None)
    with pytest.raises(NotFittedError, match="nothing was learned yet"):
        head.fit_or_refuse()


def test_rated_texts_that_take_the_place_of_the_fits_make_it_forgotten(tmp_path):
    learner = make()
    fit = learner.ridge.fitted
    learner.ridge.examples = [*learner.ridge.examples, *rated_examples(2)]
    assert learner.ridge.fitted is fit
    learner.ridge.examples = rated_examples(5)
    assert learner.ridge.fitted is None
    learner.ridge.fitted = fit
    assert learner.training_texts == fit.texts
    learner.save_model(tmp_path / "m")
    loaded = make(n=10)
    loaded.load_model(tmp_path / "m")
    assert loaded.predict_many(NEW).tobytes() == learner.predict_many(NEW).tobytes()


def test_copies_add_texts_without_seeing_each_others():
    learner = make()
    twins = [copy.deepcopy(learner) for _ in range(8)]
    threads = [
        threading.Thread(
            target=lambda one, who: [one.add_training_example(f"{who} {n}", 1.0) for n in range(500)], args=(one, who)
        )
        for who, one in enumerate([learner, *twins])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for who, one in enumerate([learner, *twins]):
        assert one.training_texts[40:] == [f"{who} {n}" for n in range(500)]


def test_a_hundred_thousand_texts_are_added_one_by_one_in_proportion():
    head = RidgeHead()
    (example,) = rated_examples(1)
    took = []
    for _ in range(2):
        start = time.process_time()
        for _ in range(20_000):
            head.extend([example])
        took.append(time.process_time() - start)
    assert took[1] < 3 * took[0]  # not with the square of their number
