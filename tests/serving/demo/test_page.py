"""The page without a browser: its handlers, uploads, drawn boxes, and the commands that start it."""

import json
import re
import shlex
import socket
import threading
from html import escape
from types import SimpleNamespace

import gradio as gr
import pytest
from helpers.adapters import write_adapter
from helpers.commands import exit_code
from helpers.openai_server import serving
from helpers.runs import ROOT
from PIL import Image

import web_demo_mm
from qwen_vl.cli import demo as cli_demo
from qwen_vl.data.validation import check_record
from qwen_vl.serving.answerers import EngineAnswerer, ServerAnswerer
from qwen_vl.serving.demo import page as demo
from qwen_vl.serving.engine import Engine, EngineSettings, load


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
    assert all("qv-live" in live and "<img" not in live for _, live, _, _ in updates[:-1])
    assert "data:image" in updates[0][0] and updates[0][3].value == {"text": "", "files": []}
    assert len(updates) > 2 and all(update[0] == update[3] == gr.skip() for update in updates[1:-1])
    assert "qv-shape" in updates[-1][0] and talk.files == {}
    content, _ = page.record(talk, "en")
    (record,) = json.loads(content)["records"]
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
    assert sum(bool(path) for path, *_ in demo.example_files(tmp_path)) == 4
    monkeypatch.setattr(demo, "EXAMPLES_DIR", tmp_path / "none")
    assert [path for path, *_ in demo.example_files(tmp_path)] == [""]


@pytest.fixture
def started(monkeypatch):
    """Return what the commands started: (its models, options of `launch`). At the end no engine may run."""
    found, engines, before = [], [], set(threading.enumerate())  # other tests have engines as well

    def launch(answerer, **options):
        assert answerer.engine.alive
        engines.append(answerer.engine)
        found.append((list(answerer.models), options))
        if options["port"] == 8125:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "launch", launch)
    monkeypatch.setattr(cli_demo, "check_free", lambda host, port: None)  # others may use these ports
    yield found
    assert engines and not any(engine.alive for engine in engines)
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)


def test_the_flags_of_the_original_start_the_page(make_checkpoint, started):
    folder = make_checkpoint()
    web_demo_mm.main(["-c", str(folder), "--cpu-only"])
    others = ["--share", "--inbrowser", "--server-port", "8123", "--server-name", "0.0.0.0", "--lang", "zh"]
    web_demo_mm.main(["--checkpoint-path", str(folder), *others])
    options = {"host": "127.0.0.1", "port": 8000, "share": False, "inbrowser": False, "language": "en"}
    changed = {"host": "0.0.0.0", "port": 8123, "share": True, "inbrowser": True, "language": "zh"}
    assert started == [([folder.name], options), ([folder.name], changed)]


def test_adapters_are_chosen_by_name_and_the_engine_ends_with_the_page(make_checkpoint, tmp_path, started, capsys):
    base, tuned = make_checkpoint(), write_adapter(make_checkpoint(), tmp_path / "tuned")
    words = ["demo", base, "--device", "cpu", "--adapters", f"cats={tuned}", "--port", "8125"]
    assert exit_code(words) == 130
    assert exit_code(["demo", tuned, "--device", "cpu", "--base", str(base)]) == 0
    assert [models for models, _ in started] == [[base.name, "cats"], ["tuned"]]
    assert exit_code(["demo", "http://127.0.0.1:9/v1", "--adapters", f"cats={tuned}"]) == 1
    assert "start it with its adapters" in capsys.readouterr().err


def test_the_commands_of_the_document_work(make_checkpoint, tmp_path, monkeypatch):
    section = (ROOT / "docs/serving.md").read_text(encoding="utf-8").partition("## The web page\n")[2]
    commands = re.search(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[1].splitlines()
    engines, launched = [], []

    class Made:
        model_names = (SimpleNamespace(id="merged"),)
        __enter__ = __exit__ = lambda self, *_: None

    monkeypatch.setattr(cli_demo.Engine, "load", lambda path, **options: engines.append((path, options)) or Made())
    monkeypatch.setattr(demo, "launch", lambda answerer, **options: launched.append((type(answerer), options)))
    monkeypatch.setattr(cli_demo, "check_free", lambda host, port: None)
    with serving(lambda path, body: (200, {"data": [{"id": "merged"}]})) as (address, _):
        for command in commands:
            program, *words = shlex.split(command.replace("http://127.0.0.1:8000/v1", address))
            assert {"qwen-vl": words[0] == "demo", "python": words[0] == "web_demo_mm.py"}[program]
            assert (exit_code(words) if program == "qwen-vl" else web_demo_mm.main(words[1:])) in (0, None)
    assert [kind for kind, _ in launched] == [EngineAnswerer, EngineAnswerer, ServerAnswerer, EngineAnswerer]
    assert [path for path, _ in engines] == ["output/merged", "Qwen/Qwen-VL-Chat", "output/merged"]
    assert engines[1][1]["adapters"] == {"cats": "output/lora", "dogs": "output/lora2"}
    assert [options["port"] for _, options in launched] == [8000, 8000, 8001, 8080]


def test_a_port_in_use_is_told_before_the_model_is_read(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exit_code(["demo", tmp_path, "--port", port]) == 1
    assert f"127.0.0.1 port {port}: address already in use; choose another --port" in capsys.readouterr().err.lower()


def test_a_greedy_answer_on_the_page_is_that_of_chat(make_checkpoint, visit):
    _, talk, path = visit
    model, tokenizer = load(make_checkpoint(), device="cpu")
    greedy = {"do_sample": False, "max_new_tokens": 12}
    expected, _ = model.chat(tokenizer, f"Picture 1: <img>{path}</img>\nWhat is it?", **greedy)
    settings = EngineSettings(max_running=2, max_batch_tokens=48, page_size=16, kv_tokens=1024, num_images=4)
    with Engine.load(make_checkpoint(), settings=settings, name="tiny", device="cpu") as engine:
        engine.generation_config.update(**greedy)
        answerer = EngineAnswerer(engine)
        page, talk = demo.Page(answerer, "en"), demo.Conversation(answerer)
        *_, (past, _, _, _) = page.ask(talk, {"text": "What is it?", "files": [path]}, "tiny", "en")
    assert talk.session.turns[0].answer == expected != "" and escape(expected) in past
