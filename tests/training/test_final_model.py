"""Replacement of an earlier final model: after any kill the folder is the old one, the new one, or does not load."""

import os
import shutil

import pytest
import torch
from helpers import runs

from qwen_vl.adapters import build
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.training import final_model

BASE = {"name": "base", "fingerprint": "f"}


class Killed(BaseException):
    """A simulated kill of the process."""


@pytest.fixture
def killed_at(monkeypatch):
    """Return a function that simulates a kill at the n-th file-system change of swapping a model."""

    def at(number):
        left = [number]

        def counted(change):
            def changed(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return change(*args, **kwargs)

            return changed

        monkeypatch.setattr(os, "replace", counted(os.replace))
        monkeypatch.setattr("pathlib.Path.unlink", counted(final_model.Path.unlink))
        monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))

    return at


def make(kind, make_checkpoint, value):
    """Return a model, or one with an adapter, whose trained weights are all `value`, and the base to record."""
    model = loading.load_model(make_checkpoint())
    if kind == "adapter":
        model.requires_grad_(False)
        model = build.add_adapters(model, LoraOptions(r=2, alpha=2, dropout=0.0, targets=["c_attn"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if kind != "adapter" or parameter.requires_grad:
                parameter.fill_(value)
    return model, BASE if kind == "adapter" else None


def found(folder, make_checkpoint):
    """Return the value of all trained weights of a folder; None if it does not load."""
    try:
        if (folder / "adapter_config.json").exists():
            loaded = build.load_adapters(loading.load_model(make_checkpoint()), Adapter.open(folder))
            values = {v.unique().item() for name, v in loaded.named_parameters() if ".lora_" in name}
        else:
            values = {value.unique().item() for value in loading.load_model(folder).parameters()}
    except (OSError, ValueError):
        return None
    (value,) = values  # never a mixture
    return value


@pytest.mark.parametrize(
    "old, new", [("whole", "whole"), ("shards", "whole"), ("whole", "adapter"), ("adapter", "whole")]
)
def test_a_kill_leaves_the_old_model_the_new_one_or_none(make_checkpoint, tmp_path, monkeypatch, killed_at, old, new):
    out, tokenizer = tmp_path / "out", loading.load_tokenizer(make_checkpoint())
    model, base = make(old, make_checkpoint, 0.25)
    final_model.save_final(model, tokenizer, out, dtype=torch.float32, base=base)
    if old == "shards":
        (out / "model.safetensors").unlink()
        model.save_pretrained(out, max_shard_size="300KB")
        assert (out / "model.safetensors.index.json").exists()
    (out / "notes.txt").write_text("of the user")
    model, base = make(new, make_checkpoint, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(final_model, "finish_saving", lambda folder: None)
        final_model.save_final(model, tokenizer, out, dtype=torch.float32, base=base)
    assert found(out, make_checkpoint) == 0.25
    seen, step, done = [], 0, False
    while not done:
        copy = shutil.copytree(out, tmp_path / f"copy{step}")
        with monkeypatch.context():
            killed_at(step)
            try:
                final_model.finish_saving(copy)
                done = True
            except Killed:
                pass
            monkeypatch.undo()
        seen.append(found(copy, make_checkpoint))
        final_model.finish_saving(copy)
        assert found(copy, make_checkpoint) == 0.5, step
        assert not list(copy.glob(".*")) and (copy / "notes.txt").exists(), step
        shutil.rmtree(copy)
        step += 1
    changes = [value for at, value in enumerate(seen) if not at or seen[at - 1] != value]
    assert changes == [0.25, None, 0.5] and step > 10, seen


def test_a_disk_that_fails_is_named_and_the_next_run_mends_it(make_checkpoint, tmp_path, monkeypatch):
    out, tokenizer = tmp_path / "out", loading.load_tokenizer(make_checkpoint())
    plain = os.replace

    def replace(source, target):
        if str(target).endswith("model.safetensors"):
            raise OSError(5, "Input/output error")
        plain(source, target)

    model, _ = make("whole", make_checkpoint, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match=r"out: the trained model is complete, but .*\.complete"):
            final_model.save_final(model, tokenizer, out, dtype=torch.float32)
    assert found(out, make_checkpoint) is None
    runs.train(make_checkpoint(), out, "--use_lora", "--resume", "auto", max_steps=1)
    assert (out / "adapter_model.safetensors").exists() and not list(out.glob(".*"))
