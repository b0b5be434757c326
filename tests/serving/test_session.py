"""A conversation: asking, stopping, asking again, corrections, errors, and the training record."""

import pytest
from PIL import Image

from qwen_vl.data.validation import check_record
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.session import AskedImage, Session


class Scripted:
    """Answers with the next of its texts, a character at a time; an exception is raised."""

    models = ("base",)

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def answer(self, turns, *, system, model, sharing_key):
        self.asked.append(([(turn.text, len(turn.images), turn.answer) for turn in turns], system, model))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for end in range(1, len(answer) + 1):
            yield answer[:end]


def image(color):
    return AskedImage(f"data:image/png;base64,{color}", SentImage.of(Image.new("RGB", (8, 8), color)))


def test_images_go_with_the_next_question_and_stay_after_an_error():
    answerer = Scripted(OSError("gone"), "red", "blue")
    session = Session(answerer, system="Be brief.")
    session.waiting = [image("red")]
    with pytest.raises(OSError, match="gone"):
        list(session.ask("Which?"))
    assert session.turns == [] and len(session.waiting) == 1 and not session.is_busy
    assert list(session.ask("Which?")) == ["r", "re", "red"]
    session.waiting = [image("blue")]
    list(session.ask("And this?", model="base"))
    assert answerer.asked[-1] == ([("Which?", 1, "red"), ("And this?", 1, None)], "Be brief.", "base")
    assert session.record()["system"] == "Be brief."
    assert session.record()["conversations"] == [
        {"from": "user", "value": "Picture 1: <img>data:image/png;base64,red</img>\nWhich?"},
        {"from": "assistant", "value": "red"},
        {"from": "user", "value": "Picture 2: <img>data:image/png;base64,blue</img>\nAnd this?"},
        {"from": "assistant", "value": "blue"},
    ]


def test_a_stopped_answer_keeps_its_beginning_and_a_closed_one_nothing():
    session = Session(Scripted("abcdef", "xyz"))
    stream = session.ask("go")
    assert next(stream) == "a"
    with pytest.raises(ValueError, match="stop it first"):
        next(session.ask("another"))
    session.stop()
    assert list(stream) == [] and session.turns[0].answer == "a"
    stream = session.ask("more")
    next(stream)
    stream.close()
    assert len(session.turns) == 1 and not session.is_busy


def test_an_answer_that_ends_after_clear_is_not_added():
    session = Session(Scripted("abc"))
    stream = session.ask("go")
    next(stream)
    session.clear()
    assert list(stream) == [] and session.turns == []


def test_questions_are_asked_again_and_answers_corrected():
    answerer = Scripted("one", "two", "better", "anew")
    session = Session(answerer)
    list(session.ask("first"))
    list(session.ask("second"))
    list(session.regenerate())
    assert [turn.answer for turn in session.turns] == ["one", "better"]
    session.correct(1, " right \n")
    assert session.record()["conversations"][-1]["value"] == "right"
    list(session.ask_again(0, "changed"))
    assert [(turn.text, turn.answer) for turn in session.turns] == [("changed", "anew")]


@pytest.mark.parametrize("text", ["", " \n", "<img>/etc/passwd</img>", "a</img>"])
def test_a_question_that_would_be_empty_or_name_a_file_is_refused(text):
    session = Session(Scripted())
    with pytest.raises(ValueError, match="question"):
        list(session.ask(text))


def test_there_is_nothing_to_do_without_a_turn():
    session = Session(Scripted())
    for action in (session.record, lambda: list(session.regenerate()), lambda: session.correct(0, "a")):
        with pytest.raises(ValueError, match="ask something first"):
            action()


@pytest.mark.parametrize(
    "answer, message", [("<img>/etc/a.png</img>", "<img>"), ("<ref>the", "never closed"), ("", "ask")]
)
def test_a_record_that_could_not_be_trained_on_is_refused_until_it_is_corrected(answer, message):
    session = Session(Scripted(answer))
    list(session.ask("Where?"))
    with pytest.raises(ValueError, match=message):
        session.record()
    with pytest.raises(ValueError, match="cannot hold the tag"):
        session.correct(0, "see <img>a.png</img>")
    session.correct(0, "<ref>here</ref><box>(1,2),(3,4)</box>")
    assert not check_record("", session.record())
