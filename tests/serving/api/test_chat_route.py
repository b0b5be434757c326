"""The chat route over an engine that says what a test wants: calls, boxes, failures, clients that leave."""

import contextlib
import http.client
import json
import threading
from types import SimpleNamespace

import openai
import pytest
from helpers.images import noise
from helpers.serving import ScriptedEngine, refused, running_server, send

from qwen_vl.serving.api import answers, sse
from qwen_vl.serving.api.running import unavailable
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.client import image_url
from qwen_vl.serving.engine import EngineStopped, Event, QueueFull, load
from qwen_vl.serving.protocol.choices import ChoiceStream

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"name": "draw", "description": "Draws.", "parameters": {"type": "object", "properties": {}}}
CALL = 'I draw.\nAction: draw\nAction Input: {"p": "猫"}\n'


@pytest.fixture(scope="module")
def loaded(make_checkpoint):
    return load(make_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def shared(loaded):
    """Return a server whose `say(items)` decides what its engine says next."""
    said = SimpleNamespace(items=[])
    engine = ScriptedEngine(*loaded, lambda request: said.items, names=("tiny", "tuned"))
    with running_server(engine, ServerSettings(request_seconds=20)) as server:
        yield server, said


@pytest.fixture
def say(shared):
    """Return a function that sets what the engine says, and returns the server."""
    server, said = shared
    server.engine.requests.clear()
    server.engine.cancelled.clear()

    def items(*items):
        said.items = items[0] if isinstance(items[0], Exception) else items
        return server

    return items


def both(server, **options):
    """Return the choice of a whole reply, and the choices of the chunks of its stream."""
    options = {**HELLO, **options}
    whole = server.client().chat.completions.create(**options).choices[0]
    chunks = [*server.client().chat.completions.create(stream=True, **options)]
    assert [chunk.model for chunk in chunks] == [options["model"]] * len(chunks)
    return whole, [chunk.choices[0] for chunk in chunks]


def pieces(tokenizer, text):
    """Return a text as a list of events with one id each."""
    return [[token] for token in tokenizer.encode(text)]


def test_characters_of_several_tokens_come_whole(say, loaded):
    text = "好的，🐱 and 👩‍👩‍👧!"
    whole, parts = both(say(*pieces(loaded[1], text)))
    assert whole.message.content == text == "".join(part.delta.content or "" for part in parts)
    assert not any("\ufffd" in (part.delta.content or "") for part in parts) and len(parts) > 6


@pytest.mark.parametrize("as_tools", [True, False])
def test_calls_go_both_ways(say, loaded, as_tools):
    options = {"tools": [{"type": "function", "function": TOOL}]} if as_tools else {"functions": [TOOL]}
    server = say(*pieces(loaded[1], CALL + "Observation: none"), threading.Event())
    whole, parts = both(server, **options)
    reason = "tool_calls" if as_tools else "function_call"
    assert whole.finish_reason == parts[-1].finish_reason == reason
    (call,) = [part.delta for part in parts if part.delta.tool_calls or part.delta.function_call]
    found = [delta.tool_calls[0].function if as_tools else delta.function_call for delta in (whole.message, call)]
    assert [(one.name, json.loads(one.arguments)) for one in found] == [("draw", {"p": "猫"})] * 2
    assert len(server.engine.cancelled) == 2  # at "Observation:"
    answered = {"role": "assistant", "content": None, "function_call": {"name": "draw", "arguments": "{}"}}
    result = {"role": "function", "name": "draw", "content": "done"}
    if as_tools:
        call = {"id": "c", "type": "function", "function": answered.pop("function_call")}
        answered["tool_calls"], result = [call], {"role": "tool", "tool_call_id": "c", "content": "done"}
    say("\nThought: I know.\nFinal Answer: Drawn.")
    whole, parts = both(server, messages=[*HELLO["messages"], answered, result], **options)
    assert whole.message.content == "Drawn." == "".join(part.delta.content or "" for part in parts)
    prompt = loaded[1].decode(server.engine.requests[-1].prompt.ids)
    assert prompt.endswith("\nAction: draw\nAction Input: {}\nObservation: done\nThought:"), prompt


def test_boxes_are_in_pixels_of_the_image_as_sent(say):
    parts = [{"type": "image_url", "image_url": {"url": image_url(noise(300, 200))}}, {"type": "text", "text": "?"}]
    server = say("<ref>It</ref><box>(100,200),(300,400)</box>")
    asked = {"messages": [{"role": "user", "content": parts}]}
    whole, streamed = both(server, **asked)
    found = whole.message.model_extra["grounding"]
    assert streamed[-1].delta.model_extra["grounding"] == found and streamed[-1].finish_reason == "stop"
    assert (found["picture"], found["width"], found["height"]) == (1, 300, 200)
    assert (found["objects"][0]["label"], found["objects"][0]["box"]) == ("It", [30.0, 40.0, 90.0, 80.0])
    assert "grounding" not in both(server, extra_body={"grounding": False}, **asked)[0].message.model_extra
    (image,) = server.engine.requests[-1].prompt.images
    assert (image.image.size, image.size) == ((64, 64), (300, 200))  # a waiting request keeps the small one


def test_an_adapter_is_asked_by_its_name(say):
    server = say("Hi")
    for name in ("tuned", "tiny"):
        assert server.client().chat.completions.create(**{**HELLO, "model": name}).model == name
    assert [request.model for request in server.engine.requests] == ["tuned", "tiny"]
    assert [(card.id, card.parent) for card in server.client().models.list()] == [("tiny", None), ("tuned", "tiny")]


@pytest.mark.parametrize("error", [Event([], None, "error", "tensor at /secret"), Event([], None, "cancelled")])
def test_an_engine_that_fails_ends_the_answer_with_an_error(say, error):
    server = say("Hello", error)
    with pytest.raises(openai.InternalServerError, match="the server failed on this request") as raised:
        server.client().chat.completions.create(**HELLO)
    assert "secret" not in str(raised.value.body)
    text = ""
    with pytest.raises(openai.APIError, match="the server failed on this request"):
        for chunk in server.client().chat.completions.create(stream=True, **HELLO):
            text += chunk.choices[0].delta.content or ""
    assert text == "Hello"


def test_an_engine_that_dies_is_unavailable(say, monkeypatch):
    server = say("Hello", Event([], None, "error", "the engine has died"))
    monkeypatch.setattr(server.engine, "alive", False)
    assert refused(send(server, CHAT, HELLO)) == (503, "unavailable", None)
    with pytest.raises(openai.APIError, match="the engine has stopped"):
        list(server.client().chat.completions.create(stream=True, **HELLO))


def test_a_bug_in_the_midst_of_a_stream_tells_nothing(say, monkeypatch, caplog):
    def fail(*args):
        raise KeyError("/a/secret")

    server = say("Hello", threading.Event())
    monkeypatch.setattr(ChoiceStream, "push", fail)
    content = send(server, CHAT, {**HELLO, "stream": True})[2].decode()
    assert content.count("the server failed on this request") == 1 and "[DONE]" not in content
    assert "secret" not in content and "/a/secret" in caplog.text
    assert server.engine.running == 0


def test_a_dead_engine_and_a_full_queue_refuse_before_a_stream_begins(say):
    for stream in (False, True):
        server = say(QueueFull("1 requests are open"))
        _, headers, content = answer = send(server, CHAT, {**HELLO, "stream": stream})
        assert refused(answer) == (429, "queue_full", None) and int(headers["Retry-After"]) > 0
        assert json.loads(content)["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            server.client().chat.completions.create(stream=stream, **HELLO)
        assert refused(send(say(EngineStopped("x")), CHAT, {**HELLO, "stream": stream})) == (503, "unavailable", None)


def test_a_choice_that_is_refused_cancels_those_before_it(say):
    hold, number = threading.Event(), iter(range(2))
    server = say(hold)
    script = server.engine.script
    server.engine.script = lambda request: QueueFull("full") if next(number) else script(request)
    with contextlib.suppress(openai.RateLimitError):
        server.client().chat.completions.create(n=2, **HELLO)
    server.engine.script = script
    assert len(server.engine.requests) == len(server.engine.cancelled) == 1 and server.engine.running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(say, stream):
    server = say("Hello", threading.Event())
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"))
    body = json.dumps({**HELLO, "stream": stream, "n": 2})
    connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
    server.wait_until(lambda stats: stats.running == 2)
    connection.close()
    server.wait_until(lambda stats: stats.running == server.app.state.running.num_running == 0, seconds=5)
    assert len(server.engine.cancelled) == 2


def test_a_quiet_stream_is_kept_alive(say, monkeypatch):
    monkeypatch.setattr(answers, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(sse, "QUIET_SECONDS", 0.01)
    hold = threading.Event()
    threading.Timer(0.4, hold.set).start()
    status, headers, content = send(say("Hello", hold, " you"), CHAT, {**HELLO, "stream": True})
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    blocks = content.decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""] and blocks.count(": ping") >= 2
    assert all(block.startswith(("data: {", ": ping")) for block in blocks[:-2])
    chunks = [json.loads(block[6:]) for block in blocks[:-2] if block != ": ping"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello you"


def test_a_request_has_a_time_limit(loaded):
    engine = ScriptedEngine(*loaded, lambda request: ["Hello", threading.Event()])
    with running_server(engine, ServerSettings(request_seconds=1)) as server:
        assert refused(send(server, CHAT, HELLO)) == (504, "timeout", None)
        content = send(server, CHAT, {**HELLO, "stream": True})[2].decode()
        assert '"content": "Hello"' in content and content.count('data: {"error"') == 1 and "[DONE]" not in content
        assert engine.running == 0 and len(engine.cancelled) == 2


def test_a_server_that_stops_ends_requests_and_takes_no_more(loaded):
    engine = ScriptedEngine(*loaded, lambda request: ["Hello", threading.Event()])
    with running_server(engine, ServerSettings(max_requests=1)) as server:
        stream = iter(server.client().chat.completions.create(stream=True, **HELLO))
        next(stream)
        assert refused(send(server, CHAT, HELLO)) == (429, "queue_full", None)
        server.in_loop(server.app.state.running.refuse, unavailable("the server is stopping"))
        assert refused(send(server, CHAT, HELLO)) == refused(send(server, "/health")) == (503, "unavailable", None)
        server.in_loop(server.app.state.running.halt, unavailable("the server is stopping"))
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
        assert engine.running == 0
