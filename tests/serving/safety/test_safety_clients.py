"""Many clients of one server: keys and images of their own, and clients that vanish."""

import json
import random
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from helpers.attacks import (
    CHAT,
    HEAD,
    answers,
    asking,
    serving,
    words,
)
from helpers.images import noise
from helpers.serving import refused, send
from PIL import Image

from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.client import image_url
from qwen_vl.serving.engine import load

KEYS = [f"key-number-{number:02}" for number in range(32)]


def keyed(number):
    return {"Authorization": f"Bearer {KEYS[number]}"}


def greedy_chat(model, tokenizer, text, image, folder):
    """Return the answer of `model.chat` about an image."""
    path = folder / f"{id(image)}.png"
    image.save(path)
    query = tokenizer.from_list_format([{"image": str(path)}, {"text": text}])
    return model.chat(tokenizer, query, max_new_tokens=24, do_sample=False)[0]


def test_32_clients_with_keys_and_images_of_their_own(engine, reader, make_checkpoint, tmp_path):
    """Check that each gets the answer about its own image, and that even the same image is shared only within a key."""
    levels = np.random.default_rng(5)
    images = [Image.fromarray(255 * levels.integers(0, 2, (4, 4, 3), dtype=np.uint8)) for _ in range(32)]
    with serving(engine, ServerSettings(api_keys=tuple(KEYS)), reader) as server:

        def client(number, text):
            body = asking(image_url(images[number]), words(text), max_tokens=24)
            status, _, content = send(server, CHAT, body, keyed(number % 32))
            assert status == 200, content
            return json.loads(content)

        with ThreadPoolExecutor(32) as pool:
            replies = [*pool.map(client, range(32), ["What is it?"] * 32)]
        found = [reply["choices"][0]["message"]["content"] for reply in replies]
        model, tokenizer = load(make_checkpoint(), device="cpu")
        assert found == [greedy_chat(model, tokenizer, "What is it?", image, tmp_path) for image in images]
        assert len(set(found)) > 25
        shared = asking(image_url(noise(50, 50)), words("What is it?" * 5), max_tokens=12)
        own = [json.loads(send(server, CHAT, shared, keyed(number))[2]) for number in (0, 1, 0, 1)]
        assert len({reply["choices"][0]["message"]["content"] for reply in own}) == 1
        cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in own]
        # Of another key nothing; of the own key the page of the system text, unless the 32 clients needed its room.
        assert max(cached[:2]) <= 16 < min(cached[2:])
        assert refused(send(server, CHAT, shared, {"Authorization": "Bearer key-number-99"})) == (
            401,
            "invalid_api_key",
            None,
        )
        assert refused(send(server, "/metrics"))[0] == 401 and send(server, "/health")[0] == 200


CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1])
connection.request("POST", "/v1/chat/completions", sys.stdin.buffer.read(), {"Content-Type": "application/json"})
print("sent", flush=True)
while connection.getresponse().read(50): pass
"""


def test_clients_that_are_killed_leave_nothing_running(server):
    """Kill client processes at random moments: nothing of them goes on running, and others get their answers."""
    rng = random.Random(1)
    image = image_url(noise(30, 30))
    body = json.dumps(asking(image, words("Go on"), stream=True, max_tokens=400, n=2)).encode()
    before = json.loads(send(server, CHAT, asking(image, words("What?"), max_tokens=8))[2])["choices"]
    address = server.address.removeprefix("http://")
    clients = []
    for _ in range(6):
        clients.append(
            subprocess.Popen([sys.executable, "-S", "-c", CLIENT, address], stdin=subprocess.PIPE, stdout=-1)
        )
        clients[-1].stdin.write(body)
        clients[-1].stdin.close()
    for client in clients:
        client.stdout.readline()
        time.sleep(rng.random() / 5)
        client.kill()
    for client in clients:
        client.wait()
        client.stdout.close()
    server.wait_until(lambda stats: stats.running == stats.waiting == stats.images_used == 0)
    assert json.loads(send(server, CHAT, asking(image, words("What?"), max_tokens=8))[2])["choices"] == before


def test_connections_that_are_reset_leave_nothing_running(server):
    """Reset 40 connections at random places of the request and of the answer."""
    rng = random.Random(2)
    name, _, port = server.address.removeprefix("http://").rpartition(":")
    for number in range(40):
        image = image_url(noise(20 + number, 20))
        body = json.dumps(asking(image, words("Go on"), stream=number % 2 == 0, max_tokens=300)).encode()
        whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        client = socket.create_connection((name, int(port)), timeout=10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(whole[: rng.randrange(len(whole))] if number % 4 == 3 else whole)
        time.sleep(rng.random() / 20)
        client.close()
    server.wait_until(lambda stats: stats.running == stats.waiting == stats.images_used == 0)
    server.wait_until(lambda stats: server.app.state.running.num_running == 0)
    answers(server)


def test_a_stop_under_load_lets_running_answers_finish(engine, reader):
    """Stop a server, as SIGTERM does, while 16 clients stream: each gets its whole answer, and new ones get 503."""
    body = asking(image_url(noise(30, 30)), words("Go on"), stream=True, max_tokens=200)
    with serving(engine, ServerSettings(), reader) as server, ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(send, server, CHAT, body) for _ in range(16)]
        server.wait_until(lambda stats: stats.running == 16)
        server.stop()
        while not server.app.state.running.refused:
            time.sleep(0.01)
        assert refused(send(server, CHAT, body))[:2] == refused(send(server, "/health"))[:2] == (503, "unavailable")
        assert {stream.result()[0] for stream in streams} == {200}
        ends = [stream.result()[2].endswith(b"data: [DONE]\n\n") for stream in streams]
        assert all(ends) and len({len(stream.result()[2]) for stream in streams}) == 1
    assert engine.stats().running == engine.stats().waiting == 0
