"""`qwen-vl checkpoint show`: an incomplete checkpoint is shown, with exit code 1."""

import pytest

from qwen_vl.cli import checkpoint


def test_an_incomplete_checkpoint_is_shown_with_exit_code_1(tmp_path, capsys):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 7, "epoch": 0.5, "log_history": []}')
    with pytest.raises(SystemExit) as end:
        checkpoint.main(["show", str(folder)])
    assert end.value.code == 1 and "checkpoint-7" in capsys.readouterr().out
