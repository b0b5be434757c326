"""Signals: they leave a checkpoint from which the run resumes exactly."""

import json
import os
import signal

import pytest
from helpers import runs

LORA = ("--use_lora", "--lora_dropout", "0.2")


AUTO = ("--resume", "auto")


def history(folder, keys=("loss", "eval_loss", "epoch", "grad_norm")):
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{"step": entry["step"]} | {key: entry[key] for key in keys if key in entry} for entry in entries[:-1]]


def signalled(number, *args, **settings):
    """Run training that a signal will end; return the exit code."""
    with pytest.raises(SystemExit) as ended:
        runs.train(*args, **settings)
    assert signal.getsignal(number) is not None
    return ended.value.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_leaves_a_checkpoint_from_which_the_run_resumes_exactly(
    make_checkpoint, tmp_path, seen, capfd, number
):
    """Compare bitwise after a stop inside an epoch and between log lines, with an evaluation due."""
    data = runs.write_data(tmp_path)
    settings = {"max_steps": 7, "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    settings |= {"data_path": data, "eval_data_path": data, "lr_scheduler_type": "cosine", "save_steps": 100}
    whole = runs.train(make_checkpoint(), tmp_path / "whole", *LORA, **settings)
    batches, seen[:], handler = list(seen), [], signal.getsignal(number)
    seen.at[1] = lambda: os.kill(os.getpid(), number)
    out = tmp_path / "out"
    assert signalled(number, make_checkpoint(), out, *LORA, *AUTO, **settings) == 128 + number
    assert signal.getsignal(number) is handler
    said = capfd.readouterr().err
    assert f"{number.name}: the run stops after this step" in said
    assert f"stopped by {number.name} after step 2 of 7; {out}/checkpoint-2 is complete" in said
    assert not (out / "adapter_model.safetensors").exists() and not list(out.glob(".*"))
    runs.train(make_checkpoint(), out, *LORA, *AUTO, **settings)
    assert seen == batches
    assert history(out) == history(whole)
    assert runs.equal(runs.weights(whole), runs.weights(out))
