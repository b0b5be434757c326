"""Answerers: a real tiny model with images of a page, and a server that streams."""

import base64
import json

import pytest
from helpers.openai_server import serving
from PIL import Image

from qwen_vl.serving.answerers import ModelAnswerer, ServerAnswerer
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.engine import load
from qwen_vl.serving.session import AskedImage, Turn

RED = AskedImage("data:image/png;base64," + "A" * 5000, SentImage.of(Image.new("RGB", (8, 8), "red")))


def test_a_model_sees_the_images_of_the_turns_and_opens_no_others(make_checkpoint, tmp_path):
    model, tokenizer = load(make_checkpoint(), device="cpu")
    model.generation_config.do_sample = False
    answerer = ModelAnswerer(model, tokenizer, name="base")
    *_, answer = answerer.answer([Turn("What?", (RED,))], system="", model="base")
    RED.sent().image.save(tmp_path / "red.png")
    *_, expected = model.chat_stream(tokenizer, f"Picture 1: <img>{tmp_path}/red.png</img>\nWhat?", system="")
    assert answer == expected
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    with pytest.raises((ValueError, OSError), match="not opened here"):
        list(answerer.answer([Turn(f"<img>{tmp_path}/private.png</img>")], system="", model=None))
    with pytest.raises(ValueError, match="no model 'other'"):
        list(answerer.answer([Turn("hi")], system="", model="other"))


def events(*texts):
    lines = [json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in texts]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])


def test_a_server_gets_images_as_sent_and_its_stream_is_read():
    def reply(path, body):
        return 200, {"data": [{"id": "base"}, {"id": "tuned"}]} if path.endswith("/models") else events("a ", "红", "c")

    with serving(reply) as (address, server):
        answerer = ServerAnswerer(address, "secret")
        assert list(answerer.models) == ["base", "tuned"]
        turns = [Turn("What?", (RED,), "red"), Turn("And now?")]
        assert list(answerer.answer(turns, system="S", model="tuned"))[-1] == "a 红c"
        body = server.requests[-1][1]
    assert body["model"] == "tuned" and body["stream"] is True and server.keys == ["Bearer secret"] * 2
    system, first, answer, second = body["messages"]
    assert (system["content"], answer["content"], second["content"]) == ("S", "red", "And now?")
    picture, text = first["content"]
    assert text == {"type": "text", "text": "What?"}
    assert base64.b64decode(picture["image_url"]["url"].partition(",")[2]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "answer, message",
    [
        ((400, {"error": {"message": "too long"}}), "too long"),
        ((500, "oops"), "status 500"),
        ((200, 'data: {"error": {"message": "it died"}}\n\n'), "it died"),
    ],
)
def test_an_error_of_a_server_is_told(answer, message):
    with serving(lambda path, body: answer if body else (200, {"data": [{"id": "base"}]})) as (address, _):
        answerer = ServerAnswerer(address)
        with pytest.raises(OSError, match=message):
            list(answerer.answer([Turn("hi")], system="", model=None))
