"""Optimizers: the default is the fused one with equal results; those of bitsandbytes learn and resume."""

import pytest
import torch
from helpers import runs

from qwen_vl.training.flags import arguments, optimizers


def test_the_fused_kernel_is_the_default_and_changes_nothing(make_checkpoint, tmp_path):
    plain = runs.train(make_checkpoint(), tmp_path / "plain", optim="adamw_torch", weight_decay=0.1)
    fused = runs.train(make_checkpoint(), tmp_path / "fused", weight_decay=0.1)
    assert runs.losses(plain) == pytest.approx(runs.losses(fused), rel=1e-5)
    assert runs.largest_difference(runs.weights(plain), runs.weights(fused)) < 1e-5
    needed = ["--data_path", "x.json", "--output_dir", str(tmp_path / "out")]
    assert arguments.parse(needed)[3].optim == "adamw_torch_fused"
    assert optimizers.resolve("auto", deepspeed="x.json", fsdp=False) == "adamw_torch"
    assert optimizers.resolve("sgd", deepspeed=None, fsdp=False) == "sgd"


@pytest.mark.parametrize("flags", [(), ("--use_lora",)], ids=["full", "lora"])
def test_eight_bit_adamw_learns_and_is_resumed(make_checkpoint, tmp_path, flags):
    """Check bitwise equality after a resume; the state of large tensors takes a quarter of the memory."""
    pytest.importorskip("bitsandbytes")
    settings = {"optim": "adamw_bnb_8bit", "max_steps": 6, "learning_rate": 5e-3, "save_strategy": "steps"}
    out = runs.train(make_checkpoint(), tmp_path / "out", *flags, **settings, save_steps=3, weight_decay=0.1)
    losses = runs.losses(out)
    assert losses[-1] < losses[0] - 0.05
    state = torch.load(out / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    assert "dtype=torch.uint8" in repr(state)
    whole = runs.weights(out)
    again = runs.train(
        *(make_checkpoint(), out, *flags),
        **settings,
        save_steps=3,
        weight_decay=0.1,
        resume_from_checkpoint=out / "checkpoint-3",
    )
    assert runs.losses(again) == losses and runs.equal(runs.weights(again), whole)
