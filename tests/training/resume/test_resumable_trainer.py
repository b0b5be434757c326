"""An interrupted and resumed run: equal losses, each sample seen once, only complete checkpoints."""

import json
import multiprocessing
import os
import signal
from collections import Counter

import pytest
from helpers import runs

LORA = ("--use_lora", "--lora_dropout", "0.2")
AUTO = ("--resume", "auto")


def signalled(number, *args, **settings):
    """Run training that a signal will end; return the exit code."""
    with pytest.raises(SystemExit) as ended:
        runs.train(*args, **settings)
    assert signal.getsignal(number) is not None
    return ended.value.code


def test_another_number_of_workers_changes_nothing(make_checkpoint, tmp_path, seen):
    """Check files, packed rows and streams; samples seen before are not opened again."""
    data = runs.write_data(tmp_path)
    lines = tmp_path / "data.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in json.loads(data.read_text())))
    for index, flags in enumerate([(), ("--packing", "auto"), ("--streaming",), ("--streaming", "--packing", "auto")]):
        settings = {"data_path": lines if "--streaming" in flags else data, "per_device_train_batch_size": 1}
        settings |= {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "model_max_length": 120}
        settings |= {"gradient_accumulation_steps": 2}
        whole = runs.train(make_checkpoint(), tmp_path / f"whole{index}", *LORA, *flags, **settings)
        batches, seen[:] = list(seen), []
        resumed = {**settings, "resume_from_checkpoint": whole / "checkpoint-2", "dataloader_num_workers": 1}
        out = runs.train(make_checkpoint(), tmp_path / f"out{index}", *LORA, *flags, **resumed)
        assert seen == batches[4:] and runs.losses(out) == runs.losses(whole), flags
        assert multiprocessing.active_children() == [], "workers end with the training"
        seen.clear()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("group", [(), ("--group_by_length",)], ids=["random", "by length"])
def test_with_another_batch_every_sample_still_comes_once_an_epoch(make_checkpoint, tmp_path, seen, batch_size, group):
    """Check that the rest of the epoch is divided again, as with other ranks, and the run ends after its last epoch."""
    settings = {"num_train_epochs": 2, "max_steps": -1, "save_strategy": "steps", "save_steps": 1}
    out, path = tmp_path / "out", ("--per_device_train_batch_size", "2", "--save_total_limit", "2")
    seen.at[2] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert signalled(signal.SIGTERM, make_checkpoint(), out, *path, *group, **settings) == 143
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    path = ("--per_device_train_batch_size", str(batch_size))
    runs.train(make_checkpoint(), out, *path, *group, *AUTO, **settings)
    names = [name for batch in seen for name in batch]
    assert Counter(names[:8]) == Counter(names[8:]) == Counter(f"sample-{index}" for index in range(8))
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == state["max_steps"] == 3 + -(-2 // batch_size) + -(-8 // batch_size)
    assert state["epoch"] == 2


def test_a_finished_run_trains_no_further(make_checkpoint, tmp_path, seen):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    first = runs.weights(runs.train(make_checkpoint(), tmp_path / "out", **settings))
    seen.clear()
    again = runs.weights(runs.train(make_checkpoint(), tmp_path / "out", *AUTO, **settings))
    assert seen == [] and runs.equal(first, again)
