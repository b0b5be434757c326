"""The page without a browser: its handlers, uploads, drawn boxes, and the commands that start it."""

import json
from types import SimpleNamespace

import pytest
from helpers.commands import exit_code
from PIL import Image

import web_demo_mm
from qwen_vl.data.validation import check_record
from qwen_vl.serving.demo import page as demo


class Fixed:
    models = ("base", "tuned")

    def answer(self, turns, *, system, model, sharing_key):
        yield from ("<ref>it", "<ref>it</ref><box>(1,2),(300,400)</box>")


@pytest.fixture
def visit(tmp_path):
    """Return (page, conversation, path of an uploaded image)."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    return demo.Page(Fixed(), "en"), demo.Conversation(Fixed()), str(tmp_path / "red.png")


def test_a_question_with_an_image_becomes_a_drawn_answer_and_a_valid_record(visit):
    page, talk, path = visit
    updates = list(page.ask(talk, {"text": "Where?", "files": [path]}, "base", "en"))
    assert any("qv-live" in str(live) for _, live, _, _ in updates)
    assert "qv-shape" in updates[-2][0] and talk.files == {}
    content, _ = page.record(talk, "en")
    (record,) = json.loads(content)
    assert not check_record("here", record) and "<" not in content
    assert record["conversations"][0]["value"].startswith("Picture 1: <img>data:image/png;base64,")
    edit = SimpleNamespace(what="answer", index=0)
    page.edit(talk, "en", edit)
    list(page.save(talk, "corrected", "base", "en"))
    assert talk.session.turns[0].answer == "corrected"
    page.edit(talk, "en", SimpleNamespace(what="question", index=0))
    list(page.save(talk, "Which?", "base", "en"))
    assert [(turn.text, len(turn.images)) for turn in talk.session.turns] == [("Which?", 1)]


@pytest.mark.parametrize("content", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", b"\x89PNG\r\n\x1a\n broken"])
def test_an_upload_that_is_no_image_is_an_error_on_the_page(visit, tmp_path, content):
    page, talk, _ = visit
    (tmp_path / "bad.png").write_bytes(content)
    message = {"text": "Where?", "files": [str(tmp_path / "bad.png")]}
    ((_, live, _, field),) = page.ask(talk, message, "base", "en")
    assert 'class="qv-error"' in live and str(tmp_path) not in live and field.value is not None
    assert talk.session.turns == []


def test_a_drawn_box_names_its_image_unless_it_is_the_latest():
    message = {"text": "What is ", "files": ["a.png"]}
    assert demo.with_box(message, 2, [1, 2, 3, 999], 2)["text"] == "What is <box>(1,2),(3,999)</box>"
    drawn = demo.with_box(message, 1, [-5, 2, 3, 5000], 2)
    assert drawn == {"text": "What is Picture 1 <box>(0,2),(3,999)</box>", "files": ["a.png"]}


def test_conversations_are_apart(visit):
    page, talk, path = visit
    other = demo.Conversation(Fixed())
    list(page.ask(talk, {"text": "Where?", "files": [path]}, "base", "en"))
    assert other.session.turns == [] and other.session.id != talk.session.id
    assert 'class="qv-error"' in page.record(other, "zh")[1]


def test_examples_are_left_out_where_their_images_are_missing(monkeypatch, tmp_path):
    assert sum(bool(path) for path, *_ in demo.example_files()) == 4
    monkeypatch.setattr(demo, "EXAMPLES_DIR", tmp_path)
    assert [path for path, *_ in demo.example_files()] == [""]


def test_the_flags_of_the_original_start_the_page_on_loopback(make_checkpoint, monkeypatch):
    started = []
    monkeypatch.setattr(demo, "launch", lambda answerer, **options: started.append((list(answerer.models), options)))
    folder = make_checkpoint()
    web_demo_mm.main(["-c", str(folder), "--cpu-only", "--server-port", "8123", "--lang", "zh"])
    assert exit_code(["demo", folder, "--device", "cpu"]) == 0
    options = {"host": "127.0.0.1", "share": False, "inbrowser": False}
    assert started == [
        ([folder.name], {**options, "language": "zh", "port": 8123}),
        ([folder.name], {**options, "language": "en", "port": 8000}),
    ]
