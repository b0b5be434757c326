"""The judge: what it is asked, what is kept, and what happens when it refuses."""

import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers.openai_server import completion, serving

from qwen_vl.evaluation import openai_protocol
from qwen_vl.evaluation.judge import Judge
from qwen_vl.evaluation.openai_protocol import Endpoint, concurrently

TALKS = [[{"role": "user", "content": f"question {number} 好"}] for number in range(12)]


@pytest.fixture
def pauses(monkeypatch):
    """Return the list of pauses, which are not waited for."""
    waited = []
    monkeypatch.setattr(openai_protocol, "time", SimpleNamespace(sleep=waited.append))
    return waited


def test_every_reply_is_kept_and_nothing_is_asked_twice(tmp_path):
    def reply(path, body):
        time.sleep(0.02)
        return completion(f"{body['messages'][0]['content']}!")

    with serving(reply) as (address, server):
        judge = Judge(Endpoint.at(address, "secret"), "j", tmp_path, concurrent=3)
        said = judge.ask([*TALKS, TALKS[0]])
        assert said == [f"question {n} 好!" for n in range(12)] + ["question 0 好!"]
        assert len(server.requests) == 12 == len(list(tmp_path.iterdir())) and 1 < server.most_busy <= 3
        path, body = server.requests[0]
        assert path == "/v1/chat/completions" and set(server.keys) == {"Bearer secret"}
        assert (body["model"], body["temperature"], body["stop"]) == ("j", 0, ["\n"]) and body["messages"] in TALKS
        assert judge.ask(TALKS) == said[:12] and len(server.requests) == 12
        replace(judge, model="another").ask(TALKS[:1])
        assert len(server.requests) == 13
    assert judge.ask(TALKS) == said[:12]  # without a server
    assert "secret" not in repr(judge)


def test_a_busy_judge_is_asked_again_with_growing_pauses(tmp_path, pauses):
    problems = [(503, "busy"), (429, "slowly", {"Retry-After": "7"}), (500, "oops")]
    with serving(lambda path, body: problems.pop(0) if problems else completion("8 9")) as (address, server):
        assert Judge(Endpoint.at(address), "j", tmp_path).ask(TALKS[:1]) == ["8 9"]
        assert pauses == [1.0, 7.0, 4.0] and len(server.requests) == 4 and server.keys == [None] * 4
    pauses.clear()
    with serving(lambda path, body: (503, "busy")) as (address, server):
        with pytest.raises(OSError, match=r"answers 503 Service Unavailable \(busy\) after 6 tries"):
            Judge(Endpoint.at(address), "j", tmp_path).ask(TALKS[1:2])
        assert len(server.requests) == 6 and pauses == [1, 2, 4, 8, 16]


def test_a_judge_that_refuses_ends_it_and_keeps_what_it_said(tmp_path, pauses):
    asked, lock = [], threading.Lock()

    def reply(path, body):
        with lock:
            asked.append(body)
            return completion("8 9") if len(asked) <= 3 else (401, {"error": "no such key"})

    with serving(reply) as (address, server):
        with pytest.raises(OSError, match=r"chat/completions: answers 401 Unauthorized .*no such key.*check the key"):
            Judge(Endpoint.at(address, "k"), "j", tmp_path, concurrent=2).ask(TALKS)
        assert len(list(tmp_path.iterdir())) == 3 and len(server.requests) <= 5
    assert not pauses
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(OSError, match=r"cannot be reached .*what has been answered is kept$"):
        Judge(Endpoint.at(address), "j", tmp_path).ask(TALKS)
    assert not pauses


@pytest.mark.parametrize("reply, reason", [("<html>", "other than JSON"), ([1], "no JSON object"), ({}, "no choices")])
def test_a_server_of_something_else(tmp_path, reply, reason):
    with serving(lambda path, body: reply) as (address, _), pytest.raises(OSError, match=reason):
        Judge(Endpoint.at(address), "j", tmp_path).ask(TALKS[:1])


def test_addresses():
    assert Endpoint.at("http://host:8000").url == Endpoint.at("http://host:8000/").url == "http://host:8000/v1"
    assert Endpoint.at("https://host/api/v2/").url == "https://host/api/v2"
    for wrong in ("host:8000", "ftp://host", "http://"):
        with pytest.raises(ValueError, match="no address of a server"):
            Endpoint.at(wrong)


def test_what_is_in_progress_is_kept_when_one_fails():
    started = threading.Barrier(2)

    def work(item):
        if item < 2:
            started.wait(10)
        if item == 0:
            raise OSError("refused")
        return item

    done = []
    with pytest.raises(OSError, match="refused"):
        done += []
        for index, value in concurrently(work, [0, 1, 2, 3], 2):
            done.append((index, value))
    assert (1, 1) in done
    assert sorted(concurrently(lambda item: item * 2, [1, 2, 3], 8)) == [(0, 2), (1, 4), (2, 6)]
