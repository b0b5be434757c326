"""The chat in the terminal: images, boxes, mistakes of the user, interrupts, damaged weights."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import exit_code
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen_vl.model import QWenLMHeadModel, QWenTokenizer
from qwen_vl.serving import terminal_chat

IMAGES = Path(__file__).parents[1] / "golden" / "images"
TWO_BOXES = "<ref>the sign</ref><box>(100,200),(500,700)</box><box>(0,0),(999,999)</box> 好"


@pytest.fixture
def scripted(make_checkpoint, monkeypatch):
    """Return a chat checkpoint and a list of its next answers; if the list is empty, the model answers itself."""
    folder, answers = make_checkpoint(), []
    tokenizer = QWenTokenizer.from_pretrained(folder)
    really_generate = QWenLMHeadModel.generate

    def generate(model, input_ids=None, streamer=None, **kwargs):
        if not answers:
            return really_generate(model, input_ids=input_ids, streamer=streamer, **kwargs)
        ids, _ = tokenizer.encode_message(answers.pop(0))
        for value in [input_ids, *torch.tensor([*ids, tokenizer.im_end_id]).reshape(-1, 1)]:
            streamer.put(value)
        streamer.end()
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    monkeypatch.setattr(QWenLMHeadModel, "generate", generate)
    return folder, answers


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def differ(first, second):
    """Return whether two images of the same size have different pixels."""
    with Image.open(first) as a, Image.open(second) as b:
        assert a.size == b.size
        return a.convert("RGB").tobytes() != b.convert("RGB").tobytes()


def test_one_question_with_boxes(scripted, in_tmp_path, capsys):
    folder, answers = scripted
    answers.append(TWO_BOXES)
    image = IMAGES / "train_00.jpg"
    assert exit_code(["chat", folder, "--image", image, "--query", "Where?", "--out", "boxes.png"]) == 0
    shown = capsys.readouterr()
    assert shown.out == TWO_BOXES + "\n"  # whole and nothing else: it can go into a pipe
    assert "boxes drawn into boxes.png" in shown.err
    assert differ("boxes.png", image)


@pytest.mark.parametrize(
    "answer, note",
    [
        ("<box>(1,2),(3)</box>", "cannot be drawn"),
        ("<box>(1,2),(3,4)", "cannot be drawn"),
        ("no box at all", ""),
    ],
)
def test_an_answer_without_drawable_boxes_is_no_error(scripted, in_tmp_path, capsys, answer, note):
    folder, answers = scripted
    answers.append(answer)
    assert exit_code(["chat", folder, "--image", IMAGES / "rgb.png", "--query", "Where?"]) == 0
    shown = capsys.readouterr()
    assert shown.out == answer + "\n" and note in shown.err
    assert not list(in_tmp_path.iterdir())


def test_a_conversation_survives_mistakes(scripted, in_tmp_path, capsys, monkeypatch):
    folder, answers = scripted
    (in_tmp_path / "answer_boxes_1.png").write_bytes(b"of another day")
    Image.open(IMAGES / "photo.jpg").save("my photo.jpg")
    asked = []
    really_stream = QWenLMHeadModel.chat_stream

    def chat_stream(model, tokenizer, query, history=None, **kwargs):
        asked.append((query, list(history), kwargs["system"]))
        return really_stream(model, tokenizer, query, history=history, **kwargs)

    monkeypatch.setattr(QWenLMHeadModel, "chat_stream", chat_stream)
    answers += ["first", TWO_BOXES, "<box>(0,0),(9,9)</box>"]
    lines = ["", "one", "/image gone.png", "/jump", "<img> never closed", "/image 'my photo.jpg'", "two", "/clear", "3"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, "/quit", "unheard"])))
    assert exit_code(["chat", folder, "--image", IMAGES / "rgb.png", "--system", "Be brief."]) == 0

    image_one = f"Picture 1: <img>{IMAGES / 'rgb.png'}</img>\none"
    image_two = "Picture 2: <img>my photo.jpg</img>\ntwo"
    assert asked == [
        (image_one, [], "Be brief."),
        ("<img> never closed", [(image_one, "first")], "Be brief."),
        (image_two, [(image_one, "first")], "Be brief."),
        ("3", [], "Be brief."),
    ]
    errors = capsys.readouterr().err
    assert "error: image 'gone.png': no such file" in errors
    assert "no command '/jump'" in errors and "error: unclosed <img>" in errors
    assert "boxes drawn into answer_boxes_2.png" in errors  # the first name was taken
    assert differ("answer_boxes_2.png", "my photo.jpg")
    assert "no image to draw them on" in errors  # the image was forgotten with the conversation


def test_the_model_answers_until_standard_input_ends(make_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand again\n"))
    assert exit_code(["chat", make_checkpoint(), "--device", "cpu", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.count("You: ") == 3


@pytest.mark.parametrize("arguments", [["--query", "hi"], []])
def test_weights_that_are_damaged_end_the_chat_with_an_error(arguments, make_checkpoint, tmp_path, monkeypatch, capsys):
    shutil.copytree(make_checkpoint(), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["transformer.h.0.mlp.w1.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert exit_code(["chat", tmp_path / "model", "--device", "cpu", *arguments]) == 1
    shown = capsys.readouterr()
    assert "!" not in shown.out
    assert (
        shown.err.strip().splitlines()[-1].startswith("error: the logits are not finite (the weights are torch.float32")
    )


def test_an_interrupt_stops_the_answer_only(capsys, monkeypatch):
    class Interrupted(terminal_chat.Session):
        def ask(self, text):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    terminal_chat.converse(Interrupted(None, None), "boxes.png")
    assert "stopped" in capsys.readouterr().err
