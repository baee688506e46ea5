"""Support: how well rated texts support a value of a text, as a p-value."""

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dspy_qvl.certainty import SIGNALS, SUPPORTED, Support, Wording, left_out_distances, repeated_share
from dspy_qvl.certainty.support.support import REASONS
from dspy_qvl.certainty.support.wording import words_of

SUBJECTS = "the a this that every no our your".split()
NOUNS = [
    f"{start}{end}" for start in "lamp cable box screen button handle filter motor".split() for end in ("", "s", "er")
]
VERBS = "works breaks arrived shines fails lasts heats leaks".split()
ENDS = "very well . | after a week . | right out of the box . | and i love it ! | but not for long .".split(" | ")


def sentence(rng: random.Random, own: str = "") -> str:
    """A sentence of a small grammar, with a word of its own."""
    parts = [rng.choice(SUBJECTS), own, rng.choice(NOUNS), rng.choice(VERBS), rng.choice(ENDS)]
    if rng.random() < 0.5:
        parts += [rng.choice(SUBJECTS), rng.choice(NOUNS), rng.choice(VERBS), rng.choice(ENDS)]
    return " ".join(filter(None, parts))


def sentences(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [sentence(rng) for _ in range(n)]


RATED = sentences(300, 0)


@pytest.fixture(scope="module")
def wording() -> Wording:
    return Wording.of(RATED, range(len(RATED)))


@pytest.fixture(scope="module")
def support(wording: Wording) -> Support:
    return Support.of(SIGNALS, wording.left_out)


def by_hand(text: str, others: list[str], listed: frozenset[str]) -> tuple[float, float]:
    """Mean rarity of the words and of the pairs of a text, by the formulas of `certainty`, from other texts alone."""

    def pairs(words: list[str]) -> list[tuple[str, str]]:
        kinds = [w if w in listed else "#" if w[-1].isdigit() else "?" if w.isalpha() else "!" for w in words]
        return list(pairwise(["", *kinds, ""]))

    known = Counter(word for other in others for word in words_of(other))
    together = Counter(pair for other in others for pair in pairs(words_of(other)))

    def p(word: str) -> float:
        return (known[word] + 0.5) / (known.total() + (len(known) + 1) / 2)

    def p_second(word: str) -> float:
        count = sum(n for pair, n in together.items() if pair[1] == word)
        return (count + 0.5) / (together.total() + (len(listed) + 4) / 2)

    def p_after(first: str, second: str) -> float:
        before = sum(n for pair, n in together.items() if pair[0] == first)
        return (together[first, second] + 20 * p_second(second)) / (before + 20)

    words = words_of(text)
    of_words = [-math.log(p(word)) for word in words]
    of_pairs = [math.log(p_second(second) / p_after(first, second)) for first, second in pairs(words)]
    return float(np.mean(of_words)), float(np.mean(of_pairs))


def signals_by_hand(text: str, others: list[str], wording: Wording) -> list[float]:
    """Phrases, order and build of a text by the formulas, from other texts alone."""
    listed, n = [pairs.listed for pairs in wording._rarities.pairs], len(words_of(text))
    of_words, of_pairs = by_hand(text, others, listed[0])
    words, order, build = map(
        lambda scale, mean: scale(mean, n), wording._scales, [of_words, of_pairs, by_hand(text, others, listed[1])[1]]
    )
    return [words + order, order, build]


def test_a_rated_text_is_compared_with_a_model_that_never_saw_its_group(monkeypatch):
    monkeypatch.setattr("dspy_qvl.certainty.support.wording.COMMONEST", 12)
    rng = random.Random(1)
    groups = [row // 3 for row in range(60)]
    texts = [sentence(rng, own=f"name{group}" if row % 2 else str(group)) for row, group in enumerate(groups)]
    wording = Wording.of(texts, groups)
    assert [len(pairs.listed) for pairs in wording._rarities.pairs][1] == 12
    for row in range(60):
        others = [text for text, group in zip(texts, groups, strict=True) if group != groups[row]]
        expected = signals_by_hand(texts[row], others, wording)
        assert wording.left_out[row, :3] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_new_text_is_compared_with_all_rated_texts(wording):
    for text in sentences(5, 2):
        assert wording.signals(text)[:3] == pytest.approx(signals_by_hand(text, RATED, wording), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", [30, 240, 1000])
def test_about_one_in_twenty_new_texts_like_the_rated_ones_is_marked(n):
    shares = []
    for seed in range(4):
        texts = sentences(n + 300, 10 + seed)
        wording = Wording.of(texts[:n], range(n))
        support = Support.of(SIGNALS, wording.left_out)
        shares.append(np.mean([support(wording.signals(text)) < SUPPORTED for text in texts[n:]]))
    assert (0 if n == 30 else 0.02) <= np.mean(shares) < 0.08


def test_texts_of_new_groups_are_not_marked_more_often_when_groups_were_told():
    rng = random.Random(3)
    groups = [row // 10 for row in range(600)]
    texts = [sentence(rng, own=" ".join(f"{name}{group}" for name in "abcd")) for group in groups]
    new = texts[300:]
    shares = []
    for told in (groups[:300], range(300)):
        wording = Wording.of(texts[:300], told)
        support = Support.of(SIGNALS, wording.left_out)
        shares.append(np.mean([support(wording.signals(text)) < SUPPORTED for text in new]))
    assert shares[0] < 0.08
    assert shares[1] > 0.5


def shuffled(text: str) -> str:
    words = text.split()
    random.Random(0).shuffle(words)
    return " ".join(words)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("quarterly turbine inspection revealed hairline cracks near root fillets", "words and phrases"),
        ("the lamp works very well . " * 3, "repeats"),
        ("Телефон отличный, батарея держит долго.", "characters"),
        (" ".join(sentences(40, 4)), "longer"),
    ],
)
def test_a_text_unlike_the_rated_ones_is_marked_and_told_why(text, reason, wording, support):
    assert support(wording.signals(text)) < SUPPORTED
    assert reason in support.reason(wording.signals(text))


def test_shuffled_words_are_told_by_their_order(wording, support):
    found = [wording.signals(shuffled(text)) for text in sentences(200, 5) if len(text.split()) > 8]
    marked = [signals for signals in found if support(signals) < SUPPORTED]
    assert len(marked) > 0.9 * len(found)
    assert Counter(support.reason(signals) for signals in marked).most_common(1)[0][0] == REASONS["order"]


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ud800", "İstanbul", "'", "a", "🙂" * 3, "a" * 100_000, "ab é漢 9 " * 12_000]
)
def test_any_text_has_finite_signals_and_a_support(text, wording, support):
    signals = wording.signals(text)
    assert len(signals) == len(SIGNALS)
    assert np.isfinite(signals).all()
    assert 0 < support(signals) <= 1


@pytest.mark.parametrize("texts", [["one text"], ["", ""], ["same words here"] * 25, ["a b", "a b c", "", "d"] * 9])
def test_any_rated_texts_will_do(texts):
    wording = Wording.of(texts, range(len(texts)))
    support = Support.of(SIGNALS, wording.left_out)
    assert np.isfinite(wording.left_out).all()
    assert 0 < support(wording.signals("something else")) <= support(wording.signals(texts[0])) <= 1


def test_one_group_of_all_texts_is_no_group(wording):
    assert (Wording.of(RATED, [7] * len(RATED)).left_out == wording.left_out).all()


def test_words_of_a_script_without_blanks_are_characters():
    assert words_of("这个产品 ok, don't") == ["这", "个", "产", "品", "ok", ",", "don't"]


def test_of_many_or_long_texts_some_are_counted_and_compared(monkeypatch):
    texts = sentences(500, 6)
    monkeypatch.setattr("dspy_qvl.certainty.support.wording.CHARACTERS", 8000)
    step = sum(map(len, texts)) // 8000 + 1
    wording = Wording.of(texts, range(500))
    assert wording.rows.tolist() == list(range(0, 500, step))
    expected = signals_by_hand("the lamp works", texts[::step], wording)
    assert wording.signals("the lamp works")[:3] == pytest.approx(expected)
    others = [texts[row] for row in range(0, 500, step) if row != 2 * step]
    assert wording.left_out[2, :3] == pytest.approx(signals_by_hand(texts[2 * step], others, wording))
    monkeypatch.setattr("dspy_qvl.certainty.support.wording.CHARACTERS", 100)
    assert len(Wording.of(texts, range(500)).rows) == 100
    monkeypatch.setattr("dspy_qvl.certainty.support.wording.SAMPLE", 10)
    assert Wording.of(texts, range(500)).rows.tolist() == list(range(0, 500, 50))


def test_a_rated_text_that_was_not_counted_is_compared_with_other_groups_too(monkeypatch):
    texts, groups = sentences(240, 8), [row // 4 for row in range(240)]
    monkeypatch.setattr("dspy_qvl.certainty.support.wording.CHARACTERS", 4000)
    wording = Wording.of(texts, groups)
    step = sum(map(len, texts)) // 4000 + 1
    assert wording.rows.tolist() == list(range(0, 240, 2))
    assert step > 2
    row = next(row for row in wording.rows.tolist() if row % step)
    others = [texts[other] for other in range(0, 240, step) if groups[other] != groups[row]]
    found = wording.left_out[row // 2, :3]
    assert found == pytest.approx(signals_by_hand(texts[row], others, wording))


def test_repetition_is_the_share_of_pieces_said_before():
    assert repeated_share("") == repeated_share("short") == 0.0
    assert repeated_share("abcdefghij" * 10) > 0.85


def test_signals_are_the_same_bits_for_rated_texts_in_any_order(wording, support):
    order = random.Random(0).sample(range(len(RATED)), len(RATED))
    other = Wording.of([RATED[row] for row in order], range(len(RATED)))
    assert (other.left_out == wording.left_out[order]).all()
    again = Support.of(SIGNALS, other.left_out)
    for text in [*sentences(50, 7), "Телефон 9 é🙂"]:
        assert other.signals(text) == wording.signals(text)
        assert again(other.signals(text)) == support(wording.signals(text))


# The p-value itself


def test_support_falls_as_a_signal_grows(wording, support):
    start = list(wording.signals(RATED[0]))
    for column in range(len(SIGNALS)):
        found = [
            support([*start[:column], start[column] + step, *start[column + 1 :]]) for step in (-1, 0, 0.5, 1, 100)
        ]
        assert found == sorted(found, reverse=True)
        assert found[-1] == 1 / 301 < SUPPORTED < found[0]


def test_support_by_one_signal_is_the_share_of_rated_texts_at_least_as_unlike():
    values = np.random.default_rng(0).normal(size=50)
    support = Support.of(["distance"], values[:, None])
    for new in (-3.0, 0.0, float(np.sort(values)[-4]), 9.0):
        assert support([new]) == (1 + (values >= new).sum()) / 51


def test_support_by_several_signals_is_calibrated():
    rng = np.random.default_rng(1)

    def draw(n):
        signals = rng.normal(size=(n, 4))
        signals[:, 1] = np.exp(2 * signals[:, 0] + signals[:, 1])
        signals[:, 2] = np.where(rng.random(n) < 0.95, 0, 0.02 * rng.random(n))
        return signals

    for n in (25, 60, 200):
        shares = []
        for _ in range(80):
            support = Support.of(["phrases", "distance", "characters", "length"], draw(n))
            found = np.array([support(signals) for signals in draw(100)])
            shares.append([np.mean(found < level) for level in (0.05, 0.2, 0.5)])
        low, middle, half = np.mean(shares, axis=0)
        assert 0.015 < low < 0.06
        assert 0.15 < middle < 0.23
        assert 0.42 < half < 0.54


def test_few_rated_texts_mark_what_is_far_beyond_them():
    left_out = np.random.default_rng(2).normal(size=(25, len(SIGNALS)))
    support = Support.of(SIGNALS, left_out)
    far = [12.0, *[0.0] * (len(SIGNALS) - 1)]
    assert support(far) == 1 / 26
    assert support.reason(far) == REASONS["phrases"]


def test_a_rated_text_is_as_far_as_the_nearest_of_another_group():
    vectors = np.random.default_rng(3).normal(size=(30, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = [row // 4 for row in range(30)]
    rows = np.array([0, 5, 29])
    expected = [
        1 - max(vectors[row] @ vectors[other] for other in range(30) if groups[other] != groups[row]) for row in rows
    ]
    assert left_out_distances(vectors, groups, rows, np.arange(30)) == pytest.approx(expected, abs=1e-5)
    alone = [1 - max(vectors[row] @ vectors[other] for other in range(30) if other != row) for row in rows]
    assert left_out_distances(vectors, [1] * 30, rows, np.arange(30)) == pytest.approx(alone, abs=1e-5)
