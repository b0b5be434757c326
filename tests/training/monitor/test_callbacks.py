"""Output of a training: a progress bar with the loss on a terminal, a line for each log elsewhere."""

import pytest
from helpers import runs
from helpers.terminals import on_terminal

START_OF_LINE, SHOW_CURSOR = "\r\x1b[2K", "\x1b[?25h"


def test_a_terminal_shows_the_loss_in_the_bar_and_evaluations_above_it(make_checkpoint, tmp_path):
    settings = {"eval_data_path": runs.write_data(tmp_path), "eval_strategy": "steps", "eval_steps": 2}
    with on_terminal() as screen:
        out = runs.train(make_checkpoint(), tmp_path / "out", "--use_lora", **settings)
    drawn = [text for text in screen.text.split(START_OF_LINE) if text.startswith("training ")]
    for step, loss in enumerate(runs.losses(out), start=1):
        assert any(f" {step}/4 " in text and f" loss {loss:.4f}, lr " in text for text in drawn)
    lines = screen.text.replace(START_OF_LINE, "\n").split("\n")
    assert [line.split("  ")[0] for line in lines if line.startswith("step ")] == ["step 2/4", "step 4/4", "step 4/4"]
    assert sum("evaluation loss" in line for line in lines) == 2 and any("  mean loss " in line for line in lines)
    assert any(line.startswith("evaluating ") and " 1/1 " in line for line in lines)
    assert lines[-2] == f"{SHOW_CURSOR}saved to {out}" and " 4/4 " in lines[-3]


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_elsewhere_each_log_is_a_line(make_checkpoint, tmp_path, capsys, on_a_terminal):
    """Check the lines without a terminal, and on a terminal with --disable_tqdm."""
    words = make_checkpoint(), tmp_path / "out", "--use_lora"
    if on_a_terminal:
        with on_terminal() as screen:
            out = runs.train(*words, disable_tqdm=True)
        shown = screen.text
    else:
        out = runs.train(*words)
        shown = capsys.readouterr().err
    lines = [line for line in shown.split("\n") if line.startswith("step ")]
    expected = [f"step {step}/4  loss {loss:.4f}  lr " for step, loss in enumerate(runs.losses(out), start=1)]
    assert len(lines) == 5 and all(line.startswith(start) for line, start in zip(lines, expected, strict=False))
    assert lines[4].startswith("step 4/4  mean loss ") and "\x1b" not in shown and "training" not in shown


def test_a_run_that_fails_ends_its_line(make_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="the loss is nan"), on_terminal() as screen:
        runs.train(make_checkpoint(), tmp_path / "out", "--use_lora", learning_rate=1e30)
    assert screen.text.endswith(f"\n{SHOW_CURSOR}") and "training" in screen.text
