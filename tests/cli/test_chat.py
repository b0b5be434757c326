"""`qwen-vl chat`: wrong arguments, and --out without a box."""

import pytest
from helpers.commands import exit_code

from qwen_vl.serving.terminal_chat import Session


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--image", "gone.png"], "gone.png"),
        (["--out", "boxes.pgn"], "--out boxes.pgn: not an image format"),
        (["--device", "abacus"], "device 'abacus' cannot be used here (Expected one of cpu"),
    ],
)
def test_wrong_arguments_are_one_line(make_checkpoint, capsys, arguments, message):
    assert exit_code(["chat", make_checkpoint(), "--query", "hi", *arguments]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


@pytest.mark.parametrize("answer, is_said", [("a dog", True), ("<box>(1,1),(9,9)</box>", False)])
def test_a_file_that_is_not_written_is_said(make_checkpoint, tmp_path, monkeypatch, capsys, answer, is_said):
    """The second answer has a box, so another note says what became of it."""
    monkeypatch.setattr(Session, "ask", lambda session, question: answer)
    out = tmp_path / "boxes.png"
    assert exit_code(["chat", make_checkpoint(), "--query", "hi", "--out", out]) == 0
    said = capsys.readouterr().err
    assert (f"(this answer has no box, so {out} is not written)" in said) == is_said
    assert said and not out.exists()
