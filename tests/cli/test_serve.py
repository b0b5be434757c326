"""`qwen-vl serve`: its flags, what it refuses before the weights are read, and the real process."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from helpers.adapters import write_adapter
from helpers.commands import exit_code
from helpers.runs import ROOT
from starlette.testclient import TestClient

import openai_api
from qwen_vl.cli import serve
from qwen_vl.cli.bounds import BOUNDS, bounds_of
from qwen_vl.serving.api.server import Server, address_of, listen
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.engine import Engine, EngineSettings
from qwen_vl.serving.media import MediaPolicy
from qwen_vl.serving.protocol.request import Limits

OTHER_FLAGS = {  # fields that are no bounds
    ServerSettings: {"host", "port", "api_keys", "insecure", "allowed_hosts", "allowed_origins", "log_requests"},
    MediaPolicy: {"media_urls", "allowed_domains", "allowed_local_dir", "ports"},
    EngineSettings: {"request_seconds", "prefix_sharing"},
    Limits: set(),
}


def parsed(*words):
    return serve.make_parser().parse_args(["model", *words])


def settings_of(args):
    return (
        serve.server_settings(args),
        serve.media_policy(args),
        serve.engine_settings(args),
        Limits(**bounds_of(args, Limits)),
    )


def test_every_bound_is_a_flag_with_the_default_of_its_settings(monkeypatch):
    monkeypatch.delenv(serve.KEY, raising=False)
    assert settings_of(parsed()) == (ServerSettings(), MediaPolicy(), EngineSettings(), Limits())
    for owner, others in OTHER_FLAGS.items():
        fields = {field.name for field in dataclasses.fields(owner)}
        assert {bound.name for bound in BOUNDS if bound.owner is owner} == fields - others
    words = [word for number, bound in enumerate(BOUNDS, 7) for word in (f"--{bound.flag}", str(number))]
    found = {type(one): one for one in settings_of(parsed(*words))}
    for number, bound in enumerate(BOUNDS, 7):
        assert getattr(found[bound.owner], bound.name) == number, bound
    assert found[EngineSettings].request_seconds == found[ServerSettings].request_seconds


def test_flags_that_are_no_bounds(monkeypatch, tmp_path):
    monkeypatch.setenv(serve.KEY, "first-long-key, second-long-key")
    words = "--host 0.0.0.0 --allowed_hosts Api.Example --allowed_origins https://a.example --no_prefix_sharing"
    words += " --media_urls off --allowed_media_domains a.example *.b.example --log_requests"
    args = parsed(*words.split(), "--allowed_local_media_path", str(tmp_path))
    server, media, engine, _ = settings_of(args)
    assert server.api_keys == ("first-long-key", "second-long-key") and server.log_requests
    assert (server.allowed_hosts, server.allowed_origins) == (("api.example",), ("https://a.example",))
    assert (media.media_urls, media.allowed_domains) == ("off", ("a.example", "*.b.example"))
    assert media.allowed_local_dir == tmp_path and not engine.prefix_sharing
    assert serve.server_settings(parsed("--api_key", "given-long-key")).api_keys == ("given-long-key",)


@pytest.mark.parametrize(
    "words", ["--max_n 0", "--max_n 1.5", "--body_seconds nan", "--port 65536", "--drain_seconds -1"]
)
def test_a_bound_is_a_number_that_makes_sense(words, capsys):
    with pytest.raises(SystemExit):
        parsed(*words.split())
    assert ": use a" in capsys.readouterr().err


def test_a_model_is_called_as_its_folder_or_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "cats@home").mkdir()
    monkeypatch.chdir(tmp_path / "cats@home")
    models = [".", f"{tmp_path}/cats@home/", "Qwen/Qwen-VL-Chat", "ms:Qwen/Qwen-VL-Chat@v1"]
    assert [serve.name_of(model) for model in models] == ["cats@home"] * 2 + ["Qwen-VL-Chat"] * 2


@pytest.fixture
def unread(monkeypatch):
    """Fail as soon as weights would be read."""
    monkeypatch.delenv(serve.KEY, raising=False)
    monkeypatch.setattr(Engine, "load", lambda *args, **options: pytest.fail("reads the weights"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--host", "0.0.0.0"], "error: --host 0.0.0.0: other machines could use this server without a key; set"),
        (["--api_key", "short"], "error: an API key has fewer than 8 characters"),
        (["--adapters", "FOLDER"], ": use name=folder"),
        (["--adapters", "a=FOLDER"], "FOLDER: no adapter_config.json there; "),
        (["--adapters", "model=ADAPTER"], "--adapters model: the name of the base"),
        (["--adapters", "a=ADAPTER", "a=ADAPTER"], "the name a is given twice"),
        (["--allowed_local_media_path", "none"], "error: --allowed_local_media_path none: no such folder"),
    ],
)
def test_mistakes_are_told_before_the_weights_are_read(words, message, make_checkpoint, tmp_path, capsys, unread):
    adapter = write_adapter(make_checkpoint(), tmp_path) if "ADAPTER" in "".join(words) else ""
    words = [word.replace("FOLDER", str(tmp_path)).replace("ADAPTER", str(adapter)) for word in words]
    assert exit_code(["serve", make_checkpoint(), "--served_model_name", "model", "--port", 0, *words]) == 1
    assert message.replace("FOLDER", str(tmp_path)) in capsys.readouterr().err


def test_a_taken_port_is_told(make_checkpoint, capsys, unread):
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        assert exit_code(["serve", make_checkpoint(), "--port", bound.getsockname()[1]]) == 1
    assert "Address already in use; choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize("library", serve.LIBRARIES)
def test_a_missing_library_is_told(library, make_checkpoint, capsys, monkeypatch, unread):
    monkeypatch.setitem(sys.modules, library, None)
    assert exit_code(["serve", make_checkpoint()]) == 1
    assert f"the server needs {library}; install it with: pip install 'qwen-vl[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", "Qwen/Qwen-VL-Chat --host 127.0.0.1 --port 8000 --served_model_name gpt-3.5-turbo"),
        (
            "-c folder --cpu-only --server-port 9000 --server-name ::1 --served_model_name own --max_n 2",
            "folder --host ::1 --port 9000 --served_model_name gpt-3.5-turbo --device cpu --served_model_name own "
            "--max_n 2",
        ),
    ],
)
def test_the_flags_of_the_original(words, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(serve, "main", lambda argv, **options: seen.append((argv, options)))
    openai_api.main(words.split())
    assert seen == [(expected.split(), {"as_original": True})]
    serve.make_parser().parse_args(expected.split())


def test_a_process_that_cannot_end_is_ended(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: code == 1 and ended.set())
    with serve.within(0.01):
        assert ended.wait(5)
    ended.clear()
    with serve.within(0.2):
        pass
    assert not ended.wait(0.4)


@contextmanager
def process(*words, log):
    """Yield a real server process on a free port and its address; it is killed if it is still there at the end."""
    environment = {**os.environ, serve.KEY: "a-long-key", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "qwen_vl.cli", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
    with open(log, "w") as errors:
        running = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        )
    try:
        line = running.stdout.readline()
        assert line.startswith("serving "), log.read_text()
        yield running, line.split()[-1].removesuffix("/v1")
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def ask(address, path, body=None):
    """Return the open response of a request."""
    request = urllib.request.Request(address + path, body and json.dumps(body).encode())
    request.add_header("Authorization", "Bearer a-long-key")
    request.add_header("Content-Type", "application/json")
    return urllib.request.urlopen(request, timeout=60)


def question(model, **fields):
    return {"model": model, "messages": [{"role": "user", "content": "a secret"}], "temperature": 0, **fields}


def test_the_process_answers_and_ends_in_order(make_checkpoint, tmp_path):
    """Answer base and adapter, then get SIGTERM under load: running answers finish, and the exit code is 0."""
    adapter = write_adapter(make_checkpoint(), tmp_path / "adapter")
    log, parts = tmp_path / "log", {}
    with process(make_checkpoint(), "--served_model_name", "base", "--adapters", f"cats={adapter}", log=log) as (
        running,
        address,
    ):
        cards = json.load(ask(address, "/v1/models"))["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [("base", None), ("cats", "base")]
        answers = [
            json.load(ask(address, "/v1/chat/completions", question(name, max_tokens=8))) for name in ("base", "cats")
        ]
        base, cats = (answer["choices"][0]["message"]["content"] for answer in answers)
        assert base and cats and base != cats

        def read(number):
            with ask(address, "/v1/chat/completions", body) as stream:
                parts[number] = [stream.readline()]
                begun.wait(30)
                parts[number] += stream.readlines()

        begun = threading.Barrier(5)
        body = question("base", stream=True, max_tokens=400, temperature=1.5)
        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        begun.wait(30)
        running.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert running.wait(30) == 0, log.read_text()
    assert [lines[-2:] for lines in parts.values()] == [[b"data: [DONE]\n", b"\n"]] * 4
    lines = log.read_text().splitlines()
    assert sum("POST /v1/chat/completions 200 id=req-" in line and "_tokens=" in line for line in lines) == 6, lines
    assert "received SIGTERM" in log.read_text() and "secret" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_an_engine_that_dies_ends_the_command(make_checkpoint, monkeypatch):
    """Fail with an error, and the request that was running too, so that a supervisor starts the server again."""

    def fail(*args, **options):
        raise RuntimeError("broken")

    def meanwhile(bound):
        with pytest.raises(urllib.error.HTTPError) as answer:
            ask(address_of(bound), "/v1/chat/completions", body)
        answers.append(answer.value)

    answers, body = [], question("tiny", stream=False)
    monkeypatch.setattr("qwen_vl.model.decoder_qwen.QWenBlock.forward", fail)
    serve_on = Server.serve_on

    def serve_and_ask(self, bound):
        thread = threading.Thread(target=meanwhile, args=(bound,))
        thread.start()
        failure = serve_on(self, bound)
        thread.join()
        return failure

    monkeypatch.setattr(Server, "serve_on", serve_and_ask)
    with pytest.raises(SystemExit) as end:
        serve.main([str(make_checkpoint()), "--served_model_name", "tiny", "--port", "0", "--device", "cpu"])
    assert end.value.code == "error: the engine has died; see the log above"
    assert answers[0].code == 503 and b"the engine has" in answers[0].read()


def test_openai_api_serves_with_the_rules_of_the_original(make_checkpoint, monkeypatch, capsys):
    def serve_on(self, bound):
        client = TestClient(self.config.app, address_of(bound))
        answers.append(client.post("/v1/chat/completions", json=question("any name", functions=[{}], max_tokens=1)))

    answers = []
    monkeypatch.setattr(Server, "serve_on", serve_on)
    openai_api.main(["-c", str(make_checkpoint()), "--cpu-only", "--server-port", "0"])
    assert answers[0].status_code == 200 and answers[0].headers["x-request-id"].startswith("req-")
    assert answers[0].json()["model"] == "any name" and answers[0].json()["usage"]["completion_tokens"] > 1
    assert capsys.readouterr().out.startswith("serving gpt-3.5-turbo at http://127.0.0.1:")
