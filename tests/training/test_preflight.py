"""Runs in which nothing would be trained: one error before the model is loaded, and no files left."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import runs

from qwen_vl.cli import run as cli_run
from qwen_vl.training import preflight
from qwen_vl.training.resume import resumable_trainer

VISION = ("--use_lora", "--lora_target_modules", "vision")


@pytest.fixture
def refused(make_checkpoint, tmp_path, monkeypatch, capsys):
    """Return a function that runs training, expects exit code 1 before a weight is loaded, and gives the error line."""

    def run(*flags, **settings):
        monkeypatch.setattr("qwen_vl.checkpoint.loading.load_model", None)
        with pytest.raises(SystemExit) as ended:
            cli_run.run(lambda argv: runs.train(make_checkpoint(), tmp_path / "out", *flags, **settings), [])
        assert ended.value.code == 1 and not (tmp_path / "out").exists()
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))

    return run


def texts(tmp_path, **fields):
    """Return the paths of a data file without images, as JSON and as JSON Lines; fields: those of every record."""
    path = runs.write_data(tmp_path, [text for text in runs.TEXTS if text[0] is None])
    records = [record | fields for record in json.loads(path.read_text())]
    lines = tmp_path / "data.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, lines


@pytest.mark.parametrize("flags", [(), ("--packing", "auto")], ids=["samples", "rows"])
def test_fewer_samples_than_a_batch(refused, flags):
    said = refused(*flags, "--dataloader_drop_last", "True", per_device_train_batch_size=9, max_steps=-1)
    number = "1 packed rows" if flags else "8 samples"
    assert "nothing would be trained: --dataloader_drop_last" in said and f"{number} do not fill one of 9 x 1" in said


@pytest.mark.parametrize("steps", [0, -5])
def test_no_steps(refused, steps):
    assert f"--max_steps {steps}: nothing would be trained; use a number above 0" in refused(max_steps=steps)


def test_an_optimizer_that_is_not_installed(refused):
    assert "need to install `schedulefree`" in refused(optim="schedule_free_adamw")


def test_arguments_that_the_optimizer_does_not_read(refused, make_checkpoint, tmp_path):
    said = refused("--optim_args", "momentum=0.9,beta9=1", optim="sgd")
    assert "--optim_args beta9=1: without effect on --optim sgd" in said
    assert "--optim_args momentum=0.9: without effect on --optim adamw_torch_fused" in refused(
        optim_args="momentum=0.9"
    )


def test_arguments_that_the_optimizer_reads(make_checkpoint, tmp_path):
    out = runs.train(
        make_checkpoint(), tmp_path / "out", optim="sgd", optim_args="momentum=0.9, nesterov=true", max_steps=1
    )
    assert (out / "model.safetensors").is_file()


def test_only_vision_and_no_image(refused, tmp_path):
    said = refused(*VISION, data_path=texts(tmp_path)[0])
    assert "nothing would be trained: only the vit would, and no sample has an image" in said


def test_a_stream_of_which_no_record_is_taken(refused, tmp_path):
    stream = texts(tmp_path)[1]
    said = refused("--streaming", data_path=stream, model_max_length=9)
    assert f"{stream}: no record that fits" in said
    said = refused("--streaming", data_path=texts(tmp_path, weight=0)[1])
    assert ".weight: 0; use a number above 0" in said


def test_rates_of_zero_are_said(make_checkpoint, tmp_path, caplog):
    out = runs.train(make_checkpoint(), tmp_path / "out", "--use_lora", learning_rate=0, max_steps=1)
    assert "every learning rate is 0, so no weight will change" in caplog.text and len(runs.losses(out)) == 1


@pytest.mark.parametrize(
    "device, precision, is_said", [("cuda", {}, True), ("cuda", {"bf16": True}, False), ("cuda", {"fp16": True}, False),
                                   ("cpu", {}, False)]
)  # fmt: skip
def test_float32_on_a_gpu_is_said(caplog, device, precision, is_said):
    flags = {"bf16": False, "fp16": False} | precision
    preflight.warn_of_float32(SimpleNamespace(device=torch.device(device), **flags))
    assert ("--bf16 True" in caplog.text) == is_said


def test_data_that_give_no_batch_after_all(make_checkpoint, tmp_path, monkeypatch):
    """Check that no result is written, whatever the reason."""
    monkeypatch.setattr(resumable_trainer.RankBatches, "__iter__", lambda self: iter(()))
    with pytest.raises(ValueError, match="no step was trained, as the data gave no batch; nothing is saved"):
        runs.train(make_checkpoint(), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists() and not (tmp_path / "out" / "run.json").exists()


def test_other_data_than_the_checkpoint_was_made_on_are_noticed_before_a_weight_is_loaded(
    make_checkpoint, tmp_path, monkeypatch
):
    out = runs.train(make_checkpoint(), tmp_path / "out", max_steps=1, save_strategy="steps")
    data = runs.write_data(tmp_path, runs.TEXTS[:-1])
    monkeypatch.setattr("qwen_vl.checkpoint.loading.load_model", None)
    with pytest.raises(ValueError, match="the number of samples in the data"):
        runs.train(make_checkpoint(), out, "--resume", "auto", max_steps=2, data_path=data)
