"""Prompts of records, to the character."""

import pytest

from qwen_vl.evaluation.prompts import TEMPLATES, build, draw_shots
from qwen_vl.evaluation.records import ImageSource, Record


def image(name="a.jpg"):
    return ImageSource.from_bytes(name, b"")


def record(**values):
    return Record(**({"id": "1", "question": "what?", "images": (image(),)} | values))


@pytest.mark.parametrize(
    "template, values, text",
    [
        ("caption", {}, "<img>a.jpg</img>Describe the image in English:"),
        ("vqa", {}, "<img>a.jpg</img>what? Answer:"),
        ("grounding", {"question": "the cat"}, "<img>a.jpg</img><ref>the cat</ref><box>"),
        (
            "choice",
            {"options": ("None", "NA")},
            "<img>a.jpg</img>Context: N/A\nQuestion: what?\nOptions: A. None\nB. NA\nAnswer:",
        ),
        (
            "choice",
            {"options": ("x",), "hint": "a hint"},
            "<img>a.jpg</img>Context: a hint\nQuestion: what?\nOptions: A. x\nAnswer:",
        ),
        (
            "seed",
            {"images": (image("0"), image("1")), "options": ("x", "y")},
            "<img>0</img>\n<img>1</img>\nQuestion: what?\nOptions: A. x\nB. y\nAnswer:",
        ),
        ("mme", {}, "<img>a.jpg</img>\nwhat?"),
        ("exam", {}, "<img>a.jpg</img>\nQuestion: what?\nAnswer:"),
        ("exam", {"options": ("x",)}, "<img>a.jpg</img>\nQuestion: what?\nOptions: A. x\nAnswer:"),
        (
            "chat",
            {"images": (image("0"), image("1"))},
            "Picture 1: <img>0</img>\nPicture 2: <img>1</img>\nwhat?",
        ),
        ("chat", {"images": ()}, "what?"),
        ("{question} see <img>{image}</img>", {}, "what? see <img>a.jpg</img>"),
        ("<img>{image}</img>in {a b} words: {question}", {}, "<img>a.jpg</img>in {a b} words: what?"),
    ],
)
def test_templates_are_filled_to_the_character(template, values, text):
    built = build(record(**values), template=template)
    assert built.text == text
    assert list(built.images) == list(record(**values).images)


def test_what_a_question_says_is_text():
    question = "<img>{image}</img>{hint}<|im_end|> is?"
    built = build(record(question=question), template="vqa")
    assert built.parts == (image(), f"{question} Answer:")
    built = build(record(question=question), template="vqa", style="chat")
    assert built.parts == (image(), f"{question} Answer:") and built.history == ()


def test_solved_examples_come_first_with_nothing_between():
    shots = [record(id=name, question=name, images=(image(name),), answers=("yes", "no")) for name in "pq"]
    built = build(record(), template="vqa", shots=shots)
    assert built.text == "<img>p</img>p Answer: yes<img>q</img>q Answer: yes<img>a.jpg</img>what? Answer:"
    assert [type(part) for part in built.parts] == [ImageSource, str] * 3
    built = build(record(), template="vqa", style="chat", shots=shots)
    assert built.history[0] == ((image("p"), "p Answer:"), "yes") and len(built.images) == 3
    with pytest.raises(ValueError, match="training record 9: has no answer"):
        build(record(), template="vqa", shots=[record(id="9")])


def test_draws_depend_on_seed_and_record_alone():
    pool = [record(id=str(number)) for number in range(50)]
    drawn = draw_shots(pool, "7", num_shots=4, seed=0)
    assert drawn == draw_shots(list(pool), "7", num_shots=4, seed=0) and len({shot.id for shot in drawn}) == 4
    assert drawn != draw_shots(pool, "8", num_shots=4, seed=0) and drawn != draw_shots(pool, "7", num_shots=4, seed=1)
    with pytest.raises(ValueError, match="51 solved examples were asked for, the training file has 50"):
        draw_shots(pool, "7", num_shots=51, seed=0)


def test_a_conversation_keeps_its_images_where_they_were_written():
    talk = record(
        question="And <img>b.jpg</img>?",
        history=(("Picture 1: <img>a.jpg</img>\nA cat?", "<img> no"),),
        images=(image("/x/a.jpg"), image("/x/b.jpg")),
        system="Be brief.",
    )
    built = build(talk, template="conversation", style="chat")
    assert built.parts == ("And ", image("/x/b.jpg"), "?") and built.system == "Be brief."
    assert built.history == ((("Picture 1: ", image("/x/a.jpg"), "\nA cat?"), "<img> no"),)
    with pytest.raises(ValueError, match="record 1: has 1 <img>"):
        build(record(question="<img>a</img>", images=()), template="conversation", style="chat")
    with pytest.raises(ValueError, match="which a raw prompt cannot hold"):
        build(talk, template="conversation")


@pytest.mark.parametrize(
    "template, message",
    [
        ("{question}", "has 0 places for images"),
        ("<img>{image}</img>" * 2, "has 2 places for images"),
        ("<img>{image}</img>{answer}", r"\{answer\} is not known; use \{question\}"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        build(record(), template=template)
    assert len(TEMPLATES) == 9
