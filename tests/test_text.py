"""Which text is valued: one rule for learning and for scoring."""

import dataclasses
import datetime
import enum
import json
from typing import Any

import dspy
import numpy as np
import pandas as pd
import pydantic
import pytest
from dspy.experimental import Choice, Noul, Score

from dspy_qvl import InputError, MissingTextError
from dspy_qvl.text.rendering import Rendering

QUESTION = dspy.Example(question="Where is it?", answer="gold", style=None).with_inputs("question")
ANSWER = dspy.Prediction(answer="On its way.", reasoning="It was sent.")


def test_a_field_is_the_predictions():
    assert Rendering("answer")(QUESTION, ANSWER) == "On its way."
    assert Rendering("answer")(None, {"answer": "a dict"}) == "a dict"
    assert Rendering("n")(None, {"n": 3}) == "3"


def test_a_format_string_takes_what_the_prediction_lacks_from_the_example():
    both = Rendering("Question: {question}\nAnswer: {answer} {{sic}}")
    assert both(QUESTION, ANSWER) == "Question: Where is it?\nAnswer: On its way. {sic}"
    assert both({"question": "Who?"}, ANSWER) == "Question: Who?\nAnswer: On its way. {sic}"


def test_the_gold_answer_never_passes_for_a_prediction():
    label = "has no field 'answer', and of the example it is no input"
    for text, pred, message in [
        ("{question} {answer}", dspy.Prediction(other="x"), label),
        ("{reasoning} {answer}", dspy.Prediction(reasoning="so"), label),
        ("{question} {answer}", dspy.Prediction(question="echo"), label),
        ("{reasoning} {answer}", dspy.Prediction(reasoning="so", answer=None), "the field 'answer' is None"),
        ("answer", dspy.Prediction(other="x"), "has no field 'answer'; it has 'other'"),
    ]:
        with pytest.raises(MissingTextError, match=message):
            Rendering(text)(QUESTION, pred)
    with pytest.raises(MissingTextError, match="has none of the fields 'question'; it has 'answer'"):
        Rendering("{question}")(QUESTION, dspy.Prediction(answer="x"))


def test_a_label_is_taken_where_it_is_asked_for_by_name():
    graded = Rendering("Reference: {example.answer}\nAnswer: {answer}")
    assert graded(QUESTION, ANSWER) == "Reference: gold\nAnswer: On its way."
    assert graded.rated(QUESTION) == "Reference: gold\nAnswer: gold"
    with pytest.raises(MissingTextError, match="the example has no field 'answer'"):
        graded({"question": "?"}, ANSWER)
    with pytest.raises(InputError, match="names no field of the prediction"):
        Rendering("{example.answer}")


def test_a_string_stands_for_the_field_that_the_example_does_not_give():
    both = Rendering("{answer}\nQ: {question}")
    assert both(QUESTION, "a program that gives a string") == "a program that gives a string\nQ: Where is it?"
    with pytest.raises(InputError, match="asks for the fields 'answer', 'reasoning'; let the program give"):
        Rendering("{reasoning} {answer}")(QUESTION, "a string")


@pytest.mark.parametrize("blank", ["", " \n\t", "\u200b \u200b", "\x00"])
def test_an_empty_answer_is_no_text_whatever_is_written_around_it(blank):
    for text in ("Question: {question} Answer: {answer}", "answer", "{reasoning} {answer}"):
        with pytest.raises(MissingTextError, match="'answer' is empty"):
            Rendering(text)(QUESTION, dspy.Prediction(answer=blank, reasoning="so"))


def test_an_example_that_is_learned_from_is_its_own_prediction():
    rated = dspy.Example(question="Who?", answer="Me.", score=3).with_inputs("question")
    assert Rendering("{question} {answer}").rated(rated) == "Who? Me."
    assert Rendering("answer").rated({"answer": ""}) == ""
    with pytest.raises(MissingTextError, match="there is no field 'reply' among 'question', 'answer', 'score'"):
        Rendering("reply").rated(rated)


def test_the_field_that_was_learned_from_is_taken_wherever_there_is_one():
    usual = Rendering(None, usual="answer")
    assert usual(QUESTION, ANSWER) == "On its way."
    assert usual(QUESTION, dspy.Prediction(reply="yes")) == "yes"


def test_a_failed_output_is_missing_and_never_another_field():
    with pytest.raises(MissingTextError, match="'reply' is None"):
        Rendering(None)(QUESTION, dspy.Prediction(reply=None))
    with pytest.raises(InputError, match="has 2 texts"):
        Rendering(None)(QUESTION, dspy.Prediction(reasoning="so", reply=None))


def test_the_only_text_is_found_and_several_are_listed():
    assert Rendering(None)(QUESTION, dspy.Prediction(reply="yes", confidence=0.5)) == "yes"
    assert Rendering(None)(QUESTION, "a program that gives a string") == "a program that gives a string"
    with pytest.raises(InputError, match="has 2 texts, among the fields 'answer', 'reasoning'; say which"):
        Rendering(None)(QUESTION, ANSWER)
    with pytest.raises(InputError, match="has no texts, among the fields 'n'"):
        Rendering(None)(QUESTION, dspy.Prediction(n=1))


def test_a_callable_is_given_both():
    assert (
        Rendering(lambda example, pred: example.question + pred.answer)(QUESTION, ANSWER) == "Where is it?On its way."
    )
    with pytest.raises(MissingTextError, match="found no field"):
        Rendering(lambda example, pred: pred.nothing)(QUESTION, ANSWER)
    with pytest.raises(MissingTextError, match="found no field 'x'"):
        Rendering(lambda example, pred: pred["x"])(QUESTION, {"y": 1})
    with pytest.raises(InputError, match="must give a string, but gave int"):
        Rendering(lambda example, pred: 3)(QUESTION, ANSWER)
    with pytest.raises(InputError, match="failed: AttributeError: 'str' object has no attribute 'strp'"):
        Rendering(lambda example, pred: pred.answer.strp())(QUESTION, ANSWER)
    with pytest.raises(InputError, match="failed: ZeroDivisionError"):
        Rendering(lambda example, pred: str(1 / 0))(QUESTION, ANSWER)


@pytest.mark.parametrize("pred", [None, dspy.Prediction(), {}, 3.5, ["answer"]])
def test_what_is_no_prediction_has_no_text(pred):
    for text in ("answer", None, "{answer}"):
        with pytest.raises(MissingTextError, match="the program gave"):
            Rendering(text)(QUESTION, pred)


def test_a_missing_field_is_named_with_those_there_are():
    with pytest.raises(MissingTextError, match="has no field 'reply'; it has 'answer', 'reasoning'"):
        Rendering("reply")(QUESTION, ANSWER)
    with pytest.raises(MissingTextError, match="has no field 'style'"):
        Rendering("{answer} {style}")(QUESTION, ANSWER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (3, "text must be a field name, a format string such as .* but got int: 3"),
        (" \n", "neither the name of a field nor a format string"),
        ("", "neither the name of a field nor a format string"),
        ("{answer", "is no format string"),
        ("answer}", "is no format string"),
        ("{}", "nothing but names of fields in braces"),
        ("{0}", "nothing but names of fields in braces"),
        ("{answer.__class__}", "nothing but names of fields in braces"),
        ("{answer.text}", "nothing but names of fields in braces, .* a callable can do what a name cannot"),
        ("{example.answer.text}", "nothing but names of fields in braces"),
        ("{ }", "nothing but names of fields in braces"),
        ("{answer[0]}", "nothing but names of fields in braces"),
        ("{answer!r}", "nothing but names of fields in braces"),
        ("{answer:>999999999}", "nothing but names of fields in braces"),
        ("{{answer}}", "nothing but names of fields in braces"),
    ],
)
def test_a_text_that_names_no_field_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Rendering(text)


# Names that are no identifiers


ROW = {
    "Review Text": "gold",
    "Review-Text": "dash",
    "review.text": "dot",
    "example.x": "x",
    "Score [1-10]": "7",
    "№ 1": "1",
}


@pytest.mark.parametrize("name", ROW)
def test_a_field_may_have_any_name_a_column_may_have(name):
    assert Rendering(name).rated(ROW) == Rendering(name)(None, ROW) == ROW[name]
    assert Rendering(name, what="query").query(ROW, None) == ROW[name]
    assert Rendering(None, usual=name)({}, {name: "x", "other": "y"}) == "x"


@pytest.mark.parametrize("name", ["Review Text", "Review-Text", "Score [1-10]", "№ 1", "Rev. Text"])
def test_a_format_string_may_hold_names_with_blanks_and_dashes(name):
    row = {name: "said", "answer": "yes"}
    both = Rendering(f"Of {{{name}}}: {{answer}}")
    assert both.rated(row) == both(row, {"answer": "yes"}) == "Of said: yes"
    labelled = Rendering(f"{{example.{name}}} {{answer}}")
    assert labelled(dspy.Example(row).with_inputs("answer"), {"answer": "yes"}) == "said yes"
    with pytest.raises(MissingTextError, match=r"has no field .* it has 'answer'"):
        both({}, {"answer": "yes"})


def test_a_missing_field_that_looks_like_a_format_string_is_told_so():
    hint = (
        "there is no field 'Answer: answer' among 'question', 'answer'; a format string has fields in braces, {answer}"
    )
    with pytest.raises(MissingTextError, match=hint):
        Rendering("Answer: answer").rated({"question": "?", "answer": "x"})
    with pytest.raises(
        MissingTextError, match="has no field 'my answer'; it has 'answer'; a format string has fields in"
    ):
        Rendering("my answer")(None, {"answer": "x"})
    with pytest.raises(MissingTextError, match=r"there is no field 'an swer' among 'answer'\.$"):
        Rendering("an swer").rated({"answer": "x"})


@pytest.mark.parametrize("nothing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_what_a_table_has_in_place_of_a_value_is_no_text(nothing):
    for call in (
        lambda: Rendering("answer").rated({"answer": nothing}),
        lambda: Rendering("{answer} {n}")(None, {"answer": nothing, "n": 1}),
        lambda: Rendering("{answer} {style}")({"style": nothing}, {"answer": "yes"}),
    ):
        with pytest.raises(MissingTextError, match=rf"the field '(answer|style)' is {nothing}"):
            call()


# Values of other types than str


class Tone(str, enum.Enum):
    WARM = "warm"


class Hue(enum.Enum):
    RED = "red"
    THIRD = 3


class Loud(str):
    def __str__(self):
        return "LOUD"


class Part(pydantic.BaseModel):
    weight: float
    tags: set[str] = set()


class Reply(pydantic.BaseModel):
    tone: Tone
    parts: list[Part]
    sent: datetime.date
    note: str | None = None


@dataclasses.dataclass
class PlainReply:
    sent: Any
    note: Any
    parts: Any
    tone: Any


REPLY = Reply(tone="warm", parts=[Part(weight=8, tags={"b", "a"}), Part(weight=0.5)], sent="2024-01-31")
AS_JSON = (
    '{"note": null, "parts": [{"tags": ["a", "b"], "weight": 8}, {"tags": [], "weight": 0.5}], '
    '"sent": "2024-01-31", "tone": "warm"}'
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("warm", "warm"),
        (Tone.WARM, "warm"),
        (Hue.RED, "red"),
        (Hue.THIRD, "3"),
        (Loud("as it is"), "as it is"),
        (np.str_("warm"), "warm"),
        (True, "True"),
        (3, "3"),
        (8.0, "8.0"),
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (np.float64(8), "8.0"),
        (datetime.date(2024, 1, 31), "2024-01-31"),
        (Noul(value=True, confidence=0.7), "True"),
        (Score["poor", "good"](value=0.25, confidence=0.7), "0.25"),
        (Choice[("warm", ""), ("cold", "")](value="warm", confidence=0.7), "warm"),
        (dspy.Code(code="x = 1"), "x = 1"),
        (["warm", Tone.WARM, 1, 1.0, None, True], '["warm", "warm", 1, 1, null, true]'),
        (("ü", {2, 1}), '["ü", [1, 2]]'),
        (np.float32([0.1, 8]), "[0.1, 8]"),
        ({"b": {"d": 1, "c": 2}, "a": 3}, '{"a": 3, "b": {"c": 2, "d": 1}}'),
        ({Tone.WARM: 1, 2: "x", None: 0.5}, '{"2": "x", "null": 0.5, "warm": 1}'),
        ([Choice[("warm", ""), ("cold", "")](value="warm", confidence=0.7)], '["warm"]'),
        (REPLY, AS_JSON),
        ([REPLY], f"[{AS_JSON}]"),
    ],
)
def test_a_value_is_written_alike_at_learning_and_at_scoring(value, text):
    for rendered in (
        Rendering("answer")(None, dspy.Prediction(answer=value)),
        Rendering("answer").rated(dspy.Example(answer=value)),
        Rendering("{answer}")(None, {"answer": value}),
        Rendering("answer", what="query").query(dspy.Example(answer=value), None),
    ):
        assert (type(rendered), rendered) == (str, text)


def test_a_model_a_dataclass_and_the_dict_of_a_file_are_one_text():
    from_file = json.loads(REPLY.model_dump_json())
    backwards = {name: from_file[name] for name in reversed(from_file)}
    backwards["parts"][0]["weight"] = 8
    backwards["parts"][0]["tags"].sort()
    in_python = REPLY.model_dump()
    plain = PlainReply(REPLY.sent, None, REPLY.parts, Tone.WARM)
    for value in (backwards, in_python, plain, dspy.Example(**in_python)):
        assert Rendering("answer")(None, {"answer": value}) == AS_JSON


def test_what_says_nothing_of_itself_is_refused():
    for value in (object(), [object()], iter([])):
        with pytest.raises(InputError, match="says nothing of what it holds, so it cannot be valued; give a string"):
            Rendering("answer")(None, {"answer": value})
    loop: list = []
    loop.append(loop)
    with pytest.raises(InputError, match="a list holds itself"):
        Rendering("answer")(None, {"answer": loop})


def test_what_a_callable_gives_is_a_string_and_nothing_more():
    for value in (Tone.WARM, Loud("warm")):
        rendered = Rendering(lambda example, pred: pred["answer"])(None, {"answer": value})
        assert (type(rendered), rendered) == (str, "warm")


def test_the_only_text_may_be_one_that_stands_for_a_string():
    for value in (Tone.WARM, Hue.RED, Choice[("red", ""), ("warm", "")](value="warm", confidence=1), Loud("x")):
        assert Rendering(None)(None, dspy.Prediction(n=1, answer=value)) in ("warm", "red", "x")
    assert Rendering(None)(None, dspy.Prediction(reply="yes", hue=Hue.RED, code=dspy.Code(code="x"))) == "yes"
    with pytest.raises(InputError, match="has 2 texts, among the fields 'reply', 'tone'; say which"):
        Rendering(None)(None, dspy.Prediction(reply="yes", tone=Tone.WARM))
    with pytest.raises(InputError, match="has no texts, among the fields 'third', 'parts'"):
        Rendering(None)(None, dspy.Prediction(third=Hue.THIRD, parts=["a"]))
