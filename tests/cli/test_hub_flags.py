"""`--hub` and `--revision` of every verb that takes a model by name."""

import socket

import pytest
from helpers.commands import exit_code

NAME = "owner/nowhere"
VERBS = {
    "plan": ["plan", "--model", NAME],
    "chat": ["chat", NAME, "--query", "Hi"],
    "demo": ["demo", NAME, "--port", "FREE"],
    "serve": ["serve", NAME, "--port", "FREE"],
    "merge": ["merge", NAME, "out"],
    "export": ["export", NAME, "out"],
    "quantize": ["quantize", NAME, "out", "--method", "nf4"],
    "verify": ["verify", NAME, NAME],
    "evaluate": ["evaluate", NAME, "--data", "data.json"],
    "preview": ["data", "preview", "data.json", "--model", NAME],
    "check": ["data", "check", "data.json", "--model", NAME],
    "cache": ["data", "cache", "data.json", "--model", NAME, "--vision_cache", "features"],
    "train": ["train", "--model_name_or_path", NAME, "--data_path", "data.json", "--output_dir", "out"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_looks_for_a_model_on_the_hub_of_the_flag(verb, write, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    turns = [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]
    write([{"id": "a", "conversations": turns}])
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    words = [port if word == "FREE" else word for word in VERBS[verb]]
    assert exit_code([*words, "--hub", "modelscope", "--revision", "v1"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "ms:owner/nowhere@v1: no folder here, not downloaded yet, and ModelScope cannot be reached" in last


def test_a_revision_without_a_name_is_refused(make_checkpoint, capsys):
    assert exit_code(["plan", "--revision", "v1"]) == 1
    assert "--revision v1: goes with the name of a model on a hub; give one" in capsys.readouterr().err
    assert exit_code(["plan", "--model", make_checkpoint(), "--revision", "v1"]) == 1
    assert "goes with the name of a model on a hub, which" in capsys.readouterr().err
    assert exit_code(["train", "--model_name_or_path", NAME, "--hub", "github", "--output_dir", "out"]) == 2
    assert "--hub github: no hub that is known here" in capsys.readouterr().err
