"""The conversation as HTML: boxes, and nothing that an answer writes becomes markup."""

import base64
import io
import re

import pytest
from PIL import Image

from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.demo.transcript import answer_html, growing, shown, transcript_html
from qwen_vl.serving.demo.words import EXAMPLES, WORDS, language_of
from qwen_vl.serving.session import AskedImage, Turn

GRAY = AskedImage("gray.png", SentImage.of(Image.new("RGB", (40, 20), "gray")))


@pytest.mark.parametrize(
    "text, visible",
    [
        ("a <ref>cat</ref><box>(1,2),(3,4)</box> b", "a cat b"),
        ("a <ref>cat</ref><box>(1,2),(", "a cat"),
        ("a <re", "a "),
        ("a <", "a "),
        ("1 < 2 and <b", "1 < 2 and "),
        ("1 < 2", "1 < 2"),
        ("x<quad>(1,2)", "x"),
    ],
)
def test_half_a_tag_is_not_shown_while_an_answer_grows(text, visible):
    assert growing(text) == visible


def test_boxes_have_places_labels_and_a_color_for_each_phrase():
    text = (
        "<ref>a & b</ref><box>(100,200),(500,700)</box><box>(0,0),(999,999)</box>, <ref>c</ref><box>(1,1),(9,9)</box>"
    )
    page = answer_html(text, GRAY, 1)
    shapes = re.findall(r'class="qv-shape qv-box" style="([^"]*)" title="([^"]*)"', page)
    assert [title for _, title in shapes] == ["a &amp; b", "a &amp; b", "c"]  # the largest lies below
    assert shapes[1][0].startswith("left:10.0%;top:20.0%;width:40.0%;height:50.0%")
    assert len({style.partition("--c:")[2] for style, _ in shapes}) == 2
    assert "&lt;box" not in page.partition('class="qv-boxes"')[0].replace('title="&lt;box', "")


def test_a_question_shows_its_boxes_on_the_image_that_it_names():
    turns = [
        Turn("first", (GRAY,), "one"),
        Turn("Picture 1 <box>(1,2),(30,40)</box> or <box>(5,6),(70,80)</box>?", (GRAY, GRAY), "two", "tuned"),
    ]
    page = transcript_html(turns, WORDS["en"])
    second = page.split('class="qv-you"')[2].partition('class="qv-it"')[0]
    figures = re.findall(r'alt="Picture (\d)">(.*?)</figure>', second)
    assert [(number, shapes.count("qv-shape")) for number, shapes in figures] == [("1", 1), ("2", 0), ("3", 1)]
    assert "left:0.1%;top:0.2%" in figures[0][1] and "&lt;box" not in second
    assert [name in page for name in ("Picture 4", '<div class="qv-name">tuned</div>')] == [False, True]
    assert page.count("qv-name") == 1


@pytest.mark.parametrize("size, expected", [((4, 2), (320, 160)), ((1, 4000), (1, 768)), ((400, 300), (400, 300))])
def test_images_on_the_page_have_sizes_to_draw_on(size, expected):
    content = base64.b64decode(shown(SentImage.of(Image.new("RGB", size))).partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == expected


@pytest.mark.parametrize("image", [GRAY, None])
@pytest.mark.parametrize("text", ["<box>(1,2),(3)</box>", "<ref>x</ref><box>(1,2),(3,1004)</box>", "<box>(1"])
def test_a_malformed_box_stays_text(text, image):
    assert answer_html(text, image, 1).count("<") == 2  # the div around it


def test_markup_of_questions_answers_and_phrases_is_text():
    evil = "<img src=http://evil.example/x onerror=alert(1)><script>1</script>"
    answer = f'{evil}<ref>" onload="{evil}</ref><box>(1,2),(3,4)</box>{evil}'
    page = transcript_html([Turn(evil, (GRAY,), answer)], WORDS["en"])
    assert re.findall(r"<(?!/)(\w+)", page).count("img") == 2  # the question's image, and the one with boxes
    assert "<script" not in page and 'onload="' not in page
    assert set(re.findall(r'<img src="([^":]*:)', page)) == {"data:"}


def test_both_languages_have_all_words():
    assert WORDS["en"].keys() == WORDS["zh"].keys() and all(len(example) == 3 for example in EXAMPLES)
    assert [language_of(wanted, "en") for wanted in ("zh-CN", "fr", None)] == ["zh", "en", "en"]
