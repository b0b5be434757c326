"""The small client: what it sends, and boxes drawn from a message of either client."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from openai.types.chat import ChatCompletionMessage
from PIL import Image

from qwen_vl.model.box_drawing_qwen import COLORS, draw_boxes
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.serving.client import ask, draw_grounding, image_url
from qwen_vl.serving.grounding import grounding

TEXT = (
    "<ref>cat</ref><box>(100,200),(500,900)</box><box>(600,200),(700,300)</box>"
    "<ref>page</ref><quad>(50,60),(90,50),(90,95),(40,90)</quad><box>(0,0),(1000,5)</box>"
)


@pytest.fixture
def server():
    """Yield (base address, list of requests); the server answers each with a box, and a wrong key with an error."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body))
            message = {"role": "assistant", "content": TEXT, "grounding": grounding(TEXT, (400, 300), image_number=1)}
            refused = self.headers["Authorization"] == "Bearer wrong"
            reply = {"error": {"message": "no such key"}} if refused else {"choices": [{"message": message}]}
            self.send_response(401 if refused else 200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1", seen
        running.shutdown()
        thread.join()


def test_ask_sends_images_and_returns_the_message(server, tmp_path):
    address, seen = server
    Image.new("RGB", (400, 300), "white").save(tmp_path / "a.jpg")
    images = [tmp_path / "a.jpg", Image.new("L", (3, 3), 7), "http://x/a.png"]
    message = ask(address, "m", "Where?", images, key="k", max_tokens=5)
    assert message["content"] == TEXT and message["grounding"]["objects"][0]["label"] == "cat"
    ((path, authorization, body),) = seen
    assert (path, authorization, body["model"], body["max_tokens"]) == ("/v1/chat/completions", "Bearer k", "m", 5)
    *urls, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Where?"}
    urls = [part["image_url"]["url"] for part in urls]
    assert urls[0].startswith("data:image/jpeg;base64,") and urls[2] == "http://x/a.png"
    assert np.array_equal(read_image(urls[1]), np.full((3, 3, 3), 7))
    assert ask(address, "m", "Hi")["role"] == "assistant" and seen[1][2]["messages"][0]["content"] == "Hi"
    with pytest.raises(OSError, match="no such key"):
        ask(address, "m", "Hi", key="wrong")
    with pytest.raises(FileNotFoundError):
        image_url(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match="cannot identify"):
        image_url(tmp_path / "text.png")
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.dds")  # a format without a MIME type
    assert image_url(tmp_path / "a.dds").startswith("data:image/png;base64,RERTI")


def test_the_boxes_are_drawn_with_their_labels():
    image = Image.new("RGB", (400, 300), "white")
    found = grounding(TEXT, image.size, image_number=1)
    expected = draw_boxes(
        image,
        [
            {"box": (100, 200, 500, 900), "ref": "cat"},
            {"box": (600, 200, 700, 300)},
            {"box": (40, 50, 90, 95), "ref": "page"},
        ],
    )
    message = ChatCompletionMessage.model_validate({"role": "assistant", "content": TEXT, "grounding": found})
    for source in (message, {"content": TEXT, "grounding": found}, found):
        assert np.array_equal(draw_grounding(image, source), expected)
    assert expected.getpixel((40, 150)) == tuple(bytes.fromhex(COLORS[0][1:]))
    half = draw_grounding(image.resize((200, 150)), message)
    assert half.size == (200, 150) and half.getpixel((20, 75)) == tuple(bytes.fromhex(COLORS[0][1:]))


def test_a_message_without_boxes_draws_nothing():
    image = Image.new("RGB", (400, 300), "white")
    plain = ChatCompletionMessage(role="assistant", content="No.")
    for source in (plain, {"content": "No."}):
        assert np.array_equal(draw_grounding(image, source), image)
    with pytest.raises(ValueError, match="message is a str"):
        draw_grounding(image, "No.")
