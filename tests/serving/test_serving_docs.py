"""docs/serving.md, "The server": its commands and samples work, and its tables have every flag."""

import json
import re
import shlex
import shutil

import pytest
from helpers.runs import ROOT
from helpers.serving import running_server, send, tiny_engine

from qwen_vl.cli import serve
from qwen_vl.serving.grounding import grounding

ADDRESS = "http://127.0.0.1:8000"
FOR_EVERY_VERB = {"--help", "--debug", "--device", "--dtype", "--base", "--trust_base"}


@pytest.fixture(scope="module")
def section():
    """Return the section of the document."""
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    return re.search(r"^## The server\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(scope="module")
def server(make_checkpoint):
    with tiny_engine(make_checkpoint(), name="merged") as engine, running_server(engine) as server:
        yield server


def blocks(section, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def test_the_curl_commands_work(section, server):
    lines = [line for block in blocks(section, "sh") for line in block.splitlines() if line.startswith("curl ")]
    assert len(lines) == 3
    for line in lines:
        words = [word for word in shlex.split(line)[1:] if word != "-N"]
        assert words.pop(0).startswith(ADDRESS)
        options = dict(zip(words[::2], words[1::2], strict=True))
        path = line.split(ADDRESS)[1].split()[0]
        assert options.pop("-H", "Content-Type: application/json") == "Content-Type: application/json"
        body = options.pop("-d", None)
        assert not options
        status, _, content = send(server, path, body and json.loads(body))
        assert status == 200 and (b"[DONE]" in content) == ("-N" in line)


def test_the_python_sample_runs(section, server, tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    shutil.copy(ROOT / "tests/golden/images/photo.jpg", tmp_path / "photos/dog.jpg")
    monkeypatch.chdir(tmp_path)
    (sample,) = blocks(section, "python")
    assert ADDRESS in sample
    exec(compile(sample.replace(ADDRESS, server.address), "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out and (tmp_path / "boxes.png").stat().st_size > 100


def test_the_boxes_are_those_of_the_answer_in_the_sample(section):
    (sample,) = blocks(section, "python")
    content = re.search(r"such as (<ref>.*</box>)", sample)[1]
    (shown,) = blocks(section, "json")
    assert json.loads(shown) == json.loads(json.dumps(grounding(content, (1024, 768), image_number=1)))


def test_every_flag_is_in_the_document_with_its_default(section):
    parser = serve.make_parser()
    flags = {action.option_strings[-1]: action for action in parser._actions if action.option_strings}
    missing = flags.keys() - FOR_EVERY_VERB - set(re.findall(r"--\w+", section))
    assert not missing
    rows = re.findall(r"^\| `(--\w+)` \| ([^|]*) \|", section, re.MULTILINE)
    words = {None: "none", False: "off"}
    for flag, default in rows:
        actual = flags[flag].default
        assert default in (actual, words.get(actual or None), words.get(actual or False), "all", "this machine's"), flag
    assert len(rows) >= 9
