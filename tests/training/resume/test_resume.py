"""An interrupted and resumed run: equal losses, each sample seen once, only complete checkpoints."""

import json
import os
import re
import shutil
import signal
from collections import Counter

import pytest
from helpers import runs

from qwen_vl.training import trainer
from qwen_vl.training.resume import checkpoints
from qwen_vl.training.resume.data_position import DataPosition

LORA = ("--use_lora", "--lora_dropout", "0.2")
AUTO = ("--resume", "auto")


@pytest.fixture
def seen(monkeypatch):
    """Return a list that gets the ids of each training batch; `seen.at[step] = function` is called before that step."""

    class Seen(list):
        at = {}  # noqa: RUF012

    batches, plain = Seen(), trainer.QWenTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            batches.at.pop(self.state.global_step, lambda: None)()
            batches.append(list(inputs["ids"]))
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.QWenTrainer, "compute_loss", compute_loss)
    Seen.at = {}
    return batches


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
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on_exactly(
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


def damage_weights(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


DAMAGES = {
    "a bit": (damage_weights, "model.safetensors has other content than was written"),
    "half": (lambda folder: os.truncate(folder / "optimizer.pt", 1000), r"optimizer.pt has 1000 bytes, not \d+"),
    "gone": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "several": (
        lambda folder: [(folder / name).unlink() for name in ("config.json", "scheduler.pt")],
        "config.json is missing; scheduler.pt is missing",
    ),
}


@pytest.fixture(scope="module")
def run_of_four(make_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("four") / "out"
    return runs.train(make_checkpoint(), out, save_strategy="steps", save_steps=1)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(run_of_four, tmp_path, caplog, kind):
    out = shutil.copytree(run_of_four, tmp_path / "out")
    damage, words = DAMAGES[kind]
    assert checkpoints.to_resume(out, "auto") == str(out / "checkpoint-4")
    damage(out / "checkpoint-4")
    assert checkpoints.to_resume(out, "true") == str(out / "checkpoint-3")
    assert re.search(rf"checkpoint-4: skipped: {words}", caplog.text)
    assert re.search(r"resuming from \S+checkpoint-3: step 3 of 4 \(complete, \d+ files\)", caplog.text)
    with pytest.raises(ValueError, match=words):
        checkpoints.to_resume(out, out / "checkpoint-4")


def test_what_there_is_to_resume_from(run_of_four, tmp_path, caplog):
    """Check folders of other tools, an empty folder, and a checkpoint that was written but not renamed."""
    out = shutil.copytree(run_of_four, tmp_path / "out")
    (out / ".saving").mkdir()
    (out / "checkpoint-4").rename(out / ".saving" / "checkpoint-4")
    shutil.copytree(out / "checkpoint-3", out / ".saving" / "checkpoint-5", ignore=lambda *_: ["optimizer.pt"])
    assert checkpoints.to_resume(out, "auto") == str(out / "checkpoint-4")  # killed between two renames
    for name in ("checkpoint-2", "checkpoint-3", "checkpoint-4"):
        (out / name / "manifest.json").unlink()
    (out / "checkpoint-4" / "trainer_state.json").write_text('{"global_step"')
    (out / "checkpoint-3" / "optimizer.pt").unlink()
    shutil.rmtree(out / "checkpoint-1")
    os.utime(out / "checkpoint-2")
    assert checkpoints.to_resume(out, "auto") == str(out / "checkpoint-2")
    assert "no manifest: it could not be checked" in caplog.text
    assert checkpoints.to_resume(out, None) is checkpoints.to_resume(out, "False") is None
    assert checkpoints.to_resume(tmp_path / "none", "auto") is None
    assert "none: no checkpoint to resume from yet; training starts from the beginning" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"no trainer_state\.json there"):
        checkpoints.to_resume(out, tmp_path)


def test_other_data_are_noticed(run_of_four, make_checkpoint, tmp_path):
    data = runs.write_data(tmp_path, [*runs.TEXTS[:-1], (None, "?", "!")])
    path = {"resume_from_checkpoint": run_of_four / "checkpoint-3"}
    with pytest.raises(ValueError, match="the data, or how they are read changed since the checkpoint was made"):
        runs.train(make_checkpoint(), tmp_path / "out", data_path=data, **path)
    with pytest.raises(ValueError, match="--train_sampling_strategy, --data_seed"):
        runs.train(make_checkpoint(), tmp_path / "out", "--group_by_length", "--data_seed", "1", **path)
    out = runs.train(make_checkpoint(), tmp_path / "out", "--ignore_data_skip", "True", data_path=data, **path)
    assert len(runs.losses(out)) == 4


def test_steps_that_are_left():
    place = DataPosition({"size": 10}, per_step=4, epoch=1, seen=3)
    assert [place.steps_to(epochs) for epochs in (0.5, 1, 1.5, 2, 2.5, 3)] == [0, 0, 2, 2, 4, 5]
