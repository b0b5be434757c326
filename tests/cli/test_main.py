"""The command `qwen-vl`: help, version, usage errors, and arguments that reach the verbs."""

import pytest
from helpers.commands import exit_code

from qwen_vl.cli import main


def test_help_version_and_usage_errors(capsys):
    assert exit_code(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("train", "data", "merge", "chat"))
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qwen-vl ")
    assert exit_code([]) == exit_code(["fly"]) == exit_code(["chat"]) == exit_code(["merge", "--color"]) == 2
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_train_and_merge_get_their_arguments(capsys, tmp_path):
    assert exit_code(["train", "--no_such_flag"]) == 2
    assert "--no_such_flag" in capsys.readouterr().err
    assert exit_code(["merge", tmp_path, tmp_path / "out"]) == 1
    assert "no adapter_config.json" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        main.entry(["merge", str(tmp_path), str(tmp_path / "out"), "--debug"])
