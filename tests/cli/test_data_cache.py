"""`qwen-vl data cache`: its arguments."""

import pytest

from qwen_vl.cli import data_cache

NEEDED = ["data.json", "--model", "model", "--vision_cache", "cache"]


@pytest.mark.parametrize(
    "words, message",
    [
        ([*NEEDED, "--bf16", "--fp16"], "--bf16 and --fp16: choose one"),
        ([*NEEDED, "--batch_size", "0"], "--batch_size is at least 1"),
        ([*NEEDED, "--workers", "-1"], "--workers at least 0"),
        (NEEDED[:3], "--vision_cache"),
    ],
)
def test_wrong_arguments_exit_with_2(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        data_cache.parse(words)
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert data_cache.parse(NEEDED).files == ["data.json"]
