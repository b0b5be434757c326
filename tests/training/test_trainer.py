"""The trainer: steps that never wait for the device, losses that are not finite, checkpoints that do not fit."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import runs

import finetune
from qwen_vl.cli.run import run
from qwen_vl.data.collator import HOST_KEYS
from qwen_vl.training.trainer import QWenTrainer


class EndOfTestError(Exception):
    """End of a run after the step under test."""


@pytest.fixture
def on_meta(monkeypatch):
    """Make a run take its first training step (loss and backward pass) on the meta device and end."""
    plain = QWenTrainer.compute_loss

    def compute_loss(trainer, model, inputs, return_outputs=False, num_items_in_batch=None):
        model = copy.deepcopy(model).to("meta")
        inputs = {key: value.to("meta") if torch.is_tensor(value) else value for key, value in inputs.items()}
        loss = plain(trainer, model, inputs, return_outputs, num_items_in_batch)
        assert loss.device.type == "meta"
        loss.backward()
        raise EndOfTestError

    monkeypatch.setattr(QWenTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize("flags", [(), ("--packing", "auto"), ("--use_lora",), ("--gradient_checkpointing", "True")])
def test_a_step_reads_nothing_from_the_device(make_checkpoint, tmp_path, on_meta, flags):
    with pytest.raises(EndOfTestError):
        runs.train(make_checkpoint(), tmp_path / "out", *flags, per_device_train_batch_size=4)


def test_nor_with_weights_and_sources(make_checkpoint, tmp_path, on_meta):
    path = runs.write_data(tmp_path)
    records = json.loads(path.read_text(encoding="utf-8"))
    other = tmp_path / "other.json"
    other.write_text(json.dumps([record | {"weight": 2} for record in records]), encoding="utf-8")
    words = ["--data_path", str(path), str(other)]
    with pytest.raises(EndOfTestError):
        runs.train(make_checkpoint(), tmp_path / "out", *words, per_device_train_batch_size=4)


def test_padding_needs_no_mask_in_training(make_checkpoint, tmp_path, monkeypatch):
    """Check that losses of right-padded rows are equal without an attention mask; evaluation keeps the mask."""
    seen, padded, plain = set(), [], QWenTrainer.compute_loss

    def compute_loss(trainer, model, inputs, *args, **kwargs):
        spy = model.register_forward_pre_hook(
            lambda module, words, named: seen.add((module.training, named.get("attention_mask") is not None)),
            with_kwargs=True,
        )
        found = plain(trainer, model, inputs, *args, **kwargs)
        spy.remove()
        if model.training:
            kept = {key: value for key, value in inputs.items() if key not in HOST_KEYS}
            with torch.no_grad():
                masked = model(**kept, num_items_in_batch=kwargs.get("num_items_in_batch"), use_cache=False).loss
            padded.append(bool((kept["attention_mask"] == 0).any()))
            assert found.item() == pytest.approx(masked.item(), rel=1e-6)
        return found

    monkeypatch.setattr(QWenTrainer, "compute_loss", compute_loss)
    held_out = ("--eval_data_path", str(runs.write_data(tmp_path)), "--eval_strategy", "steps", "--eval_steps", "2")
    runs.train(make_checkpoint(), tmp_path / "out", *held_out)
    assert any(padded) and seen == {(True, False), (False, True)}


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_not_resumed(checkpoint_of_one_step, make_checkpoint, tmp_path, file):
    damaged = Path(shutil.copytree(checkpoint_of_one_step, tmp_path / "checkpoint-1"))
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=str(damaged)) as raised:
        runs.train(make_checkpoint(), tmp_path / "out", resume_from_checkpoint=damaged)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_checkpoint_of_another_kind_of_run_is_not_resumed(checkpoint_of_one_step, make_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="made with other flags"):
        runs.train(make_checkpoint(), tmp_path / "out", "--use_lora", resume_from_checkpoint=checkpoint_of_one_step)
    weights_only = Path(shutil.copytree(checkpoint_of_one_step, tmp_path / "checkpoint-1"))
    (weights_only / "optimizer.pt").unlink()
    (weights_only / "manifest.json").unlink()
    with pytest.raises(ValueError, match="without the optimizer's state"):
        runs.train(make_checkpoint(), tmp_path / "out", resume_from_checkpoint=weights_only)


@pytest.fixture(scope="module")
def checkpoint_of_one_step(make_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("resumable") / "out"
    return runs.train(make_checkpoint(), out, max_steps=1, save_strategy="steps") / "checkpoint-1"


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(make_checkpoint, tmp_path, capsys):
    out, data = tmp_path / "out", runs.write_data(tmp_path)
    words = ["--model_name_or_path", make_checkpoint(), "--data_path", data, "--image_folder", runs.GOLDEN]
    words += ["--output_dir", out, "--learning_rate", "1e30", "--per_device_train_batch_size", "2"]
    with pytest.raises(SystemExit) as ended:
        run(finetune.main, [str(word) for word in words])
    assert ended.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: step 2: the loss is (nan|inf) for samples 'sample-\d', 'sample-\d'; lower", message)
    assert not (out / "model.safetensors").exists()
