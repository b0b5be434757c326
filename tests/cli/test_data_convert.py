"""`qwen-vl data convert`: what it prints and writes, and its errors."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.cli import data
from qwen_vl.data.conversations import read
from qwen_vl.data.validation import DataError

HUMAN, GPT = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}


def test_the_command(write, tmp_path, capsys):
    source = write([{"id": "n", "image": "gone.png", "extra": 1, "conversations": [HUMAN, GPT]}] * 2, "llava.json")
    out = str(tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="2 problems in 2 records; nothing written"):
        data.main(["convert", str(source), out, "--from", "llava"])
    data.main(["convert", str(source), out, "--from", "llava", "--pictures", "any"])
    assert (
        "2 records from 2 records" in (shown := capsys.readouterr().out)
        and "key 'extra' of a record is left out" in shown
    )
    assert len(read(out, check_images=False)) == 2
    for name in ("a.png", "gone.png"):
        Image.new("RGB", (640, 480)).save(tmp_path / name)
    good = {"id": "g", "image": "a.png", "conversations": [HUMAN, GPT]}
    source = write([good, {"id": "b", "conversations": [HUMAN, GPT]}], "llava.json")
    data.main(["convert", str(source), out, "--from", "llava", "--skip_errors"])
    (skipped,) = map(json.loads, Path(f"{out}.skipped.jsonl").read_text().splitlines())
    assert (skipped["record"], skipped["id"], skipped["field"]) == ("[1]", "b", "conversations[0].value")
    for options in (
        [out, out, "--from", "llava"],
        [str(source), out, "--from", "ours"],
        [str(source), out, "--from", "ours", "--to", "coco"],
        [str(source), out, "--from", "coco", "--prompt", "Where?"],
    ):
        with pytest.raises(SystemExit):
            data.main(["convert", *options])
