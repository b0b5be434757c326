"""`qwen-vl data preview`: what it prints and writes, and its errors."""

import os

import pytest
from helpers.pages import Page
from helpers.records import talk
from PIL import Image

from qwen_vl.cli import data as cli_data


def test_the_command(write, make_checkpoint, tmp_path, monkeypatch, capsys):
    data = write([talk(name, "What is it?") for name in ("a", "b", 3)])
    monkeypatch.chdir(tmp_path)
    model = str(make_checkpoint())
    cli_data.main(["preview", str(data), "--model", model, "--num", "2"])
    assert "samples 2 of 3" in capsys.readouterr().out
    assert len(Page((tmp_path / "preview.html").read_bytes()).samples) == 2
    cli_data.main(["preview", str(data), "--model", model, "--ids", "3", "--out", "a.png", "--loss_on", "answers"])
    assert "samples 1 of 3" in capsys.readouterr().out
    assert Image.open("a.png").format == "PNG"
    before = sorted(os.listdir())
    for options, message in (
        (["--ids", "4", "5"], "no conversation with id '4', '5'"),
        (["--out", "x.png", "--format", "html"], "ends with .html"),
        (["--image_folder", "nowhere"], "no such folder"),
        (["--out", "nowhere/x.html"], "nowhere"),
    ):
        with pytest.raises((ValueError, OSError)) as caught:
            cli_data.main(["preview", str(data), "--model", model, *options])
        assert message in str(caught.value)
    assert sorted(os.listdir()) == before
