"""Which text is valued: one rule for learning and for scoring."""

import dspy
import pytest

from dspy_qvl import InputError, MissingTextError
from dspy_qvl.text import Rendering

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
    with pytest.raises(MissingTextError, match="has none of the fields 'question', 'answer'; it has 'other'"):
        Rendering("{question} {answer}")(QUESTION, dspy.Prediction(other="x"))


def test_nothing_said_stays_nothing_whatever_is_written_around_it():
    assert Rendering("Question: {question} Answer: {answer}")(QUESTION, dspy.Prediction(answer=" \n")) == ""


def test_an_example_that_is_learned_from_is_its_own_prediction():
    rated = dspy.Example(question="Who?", answer="Me.", score=3)
    assert Rendering("{question} {answer}")(rated, rated) == "Who? Me."


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
    with pytest.raises(ZeroDivisionError):
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
        ("two words", "neither the name of a field nor a format string"),
        ("", "neither the name of a field nor a format string"),
        ("{answer", "is no format string"),
        ("answer}", "is no format string"),
        ("{}", "nothing but names of fields in braces"),
        ("{0}", "nothing but names of fields in braces"),
        ("{answer.__class__}", "nothing but names of fields in braces"),
        ("{answer[0]}", "nothing but names of fields in braces"),
        ("{answer!r}", "nothing but names of fields in braces"),
        ("{answer:>999999999}", "nothing but names of fields in braces"),
        ("{{answer}}", "nothing but names of fields in braces"),
    ],
)
def test_a_text_that_names_no_field_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Rendering(text)
