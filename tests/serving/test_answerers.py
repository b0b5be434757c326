"""Answerers: a tiny model in an engine, and a server that streams."""

import base64
import json
import threading

import pytest
from helpers.adapters import write_adapter
from helpers.openai_server import serving
from helpers.serving import running_server
from PIL import Image

from qwen_vl.serving.answerers import EngineAnswerer, ServerAnswerer
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.engine import Engine, EngineSettings, load
from qwen_vl.serving.session import AskedImage, Session, Turn, queries

RED = AskedImage("data:image/png;base64," + "A" * 5000, SentImage.of(Image.new("RGB", (8, 8), "red")))


SETTINGS = EngineSettings(max_running=8, max_batch_tokens=48, page_size=16, kv_tokens=1024, num_images=8)


@pytest.fixture(scope="module")
def engine(make_checkpoint, tmp_path_factory):
    """Return a greedy engine of a base and an adapter, and the two models alone: (engine, {name: model})."""
    folder = write_adapter(make_checkpoint(), tmp_path_factory.mktemp("tuned"))
    models = {"tiny": load(make_checkpoint(), device="cpu")[0], "tuned": load(folder, device="cpu")[0]}
    for model in models.values():
        model.generation_config.update(do_sample=False, max_new_tokens=24)
    with Engine.load(
        make_checkpoint(), adapters={"tuned": folder}, settings=SETTINGS, name="tiny", device="cpu"
    ) as started:
        started.generation_config.update(do_sample=False, max_new_tokens=24)
        yield started, models


def chat_answer(model, tokenizer, turns):
    """Return what `model.chat` answers to the last of the turns, whose images are files."""
    texts = queries(turns)
    history = [(text, turn.answer) for text, turn in zip(texts, turns[:-1], strict=False)]
    return model.chat(tokenizer, texts[-1], history=history)[0]


def test_sessions_of_an_engine_answer_together_as_chat_does(engine, tmp_path):
    engine, models = engine
    answerer, found, threads = EngineAnswerer(engine), {}, []
    assert list(answerer.models) == ["tiny", "tuned"]

    def talk(color, name):
        path, session = tmp_path / f"{color}-{name}.png", Session(answerer)
        Image.new("RGB", (20, 30), color).save(path)
        session.waiting = [AskedImage(str(path))]
        list(session.ask("What is it?", model=name))
        *_, last = session.ask("And <ref>now</ref>?", model=name)
        assert last == session.turns[-1].answer
        found[color, name] = session.turns

    cases = [("red", "tiny"), ("blue", "tuned"), ("red", "tuned"), ("green", "tiny")]
    for case in cases:
        threads.append(threading.Thread(target=talk, args=case))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for color, name in cases:
        turns = found[color, name]
        for end in (1, 2):
            assert turns[end - 1].answer == chat_answer(models[name], engine.tokenizer, turns[:end])
    assert found["red", "tiny"][0].answer != found["red", "tuned"][0].answer


def test_the_server_gives_a_page_the_answers_of_its_engine(engine):
    engine, _ = engine
    turns = [Turn("What <ref>is</ref> it?", (RED,))]
    *_, expected = EngineAnswerer(engine).answer(turns, system="Be brief.", model="tuned")
    with running_server(engine) as server:
        answerer = ServerAnswerer(server.url)
        assert list(answerer.models) == ["tiny", "tuned"]
        *_, found = answerer.answer(turns, system="Be brief.", model="tuned")
        assert found == expected != ""
        with pytest.raises(OSError, match="other"):
            list(answerer.answer(turns, system="", model="other"))


def test_a_stop_reaches_an_engine_before_its_first_token(engine, monkeypatch):
    engine, _ = engine
    session = Session(EngineAnswerer(engine))
    monkeypatch.setattr(engine, "_add", lambda opened, ids: None)  # no lane gets it
    stream = session.ask("hello")
    assert next(stream) == "" and engine.stats().waiting == 1
    session.stop()
    assert list(stream) == [] and engine.stats().waiting == 0 and session.turns[0].answer == ""


def test_what_an_engine_refuses_is_told(engine, monkeypatch):
    engine, _ = engine
    answerer = EngineAnswerer(engine)
    for turns, model, error, message in (
        ([Turn("hi")], "other", ValueError, "no model of this name"),
        ([Turn("long " * 20_000)], "tuned", ValueError, "together they may"),
    ):
        with pytest.raises(error, match=message):
            list(answerer.answer(turns, system="", model=model))
    monkeypatch.setattr(engine, "_add", lambda opened, ids: opened.close("error", "the engine has died"))
    with pytest.raises(OSError, match="has died"):
        list(answerer.answer([Turn("hi")], system="", model=None))
    monkeypatch.setattr(engine, "stopping", True)
    with pytest.raises(OSError, match="not running"):
        list(answerer.answer([Turn("hi")], system="", model=None))


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
