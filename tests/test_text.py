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
