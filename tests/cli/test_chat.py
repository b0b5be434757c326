"""`qwen-vl chat`: wrong arguments."""

import pytest
from helpers.commands import exit_code


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
