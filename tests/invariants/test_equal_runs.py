"""Runs that must give the same model: options of memory and speed, and interruptions, change no result."""

import pytest
from helpers import runs

LORA = ("--use_lora", "--lora_dropout", "0.2")


@pytest.mark.parametrize("lora", [(), ("--use_lora", "--lora_dropout", "0")], ids=["full", "lora"])
def test_accumulated_micro_batches_equal_one_batch(make_checkpoint, tmp_path, lora):
    """Compare samples with different numbers of targets: the loss is a mean over all targets of a step."""
    settings = {"max_steps": 2, "max_grad_norm": 0.1}
    whole = runs.train(make_checkpoint(), tmp_path / "whole", *lora, per_device_train_batch_size=4, **settings)
    split = runs.train(
        make_checkpoint(),
        tmp_path / "split",
        *lora,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        **settings,
    )
    assert runs.losses(split) == pytest.approx(runs.losses(whole), rel=2e-6)
    assert runs.largest_difference(runs.weights(whole), runs.weights(split)) < 2e-5


@pytest.mark.parametrize(
    "flags",
    [
        ("--fix_vit", "False"),
        LORA,
        (*LORA, "--group_by_length"),
        (*LORA, "--lora_bias", "all", "--modules_to_save", "visual", "lm_head"),
    ],
    ids=["full", "lora", "by length", "lora and more"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make_checkpoint, tmp_path, flags):
    """Compare bitwise: shuffled over two epochs, with dropout, interrupted inside the second epoch and resumed."""
    settings = {"max_steps": 7, "save_strategy": "steps", "save_steps": 5}
    whole = runs.train(make_checkpoint(), tmp_path / "whole", *flags, **settings)
    runs.train(make_checkpoint(), tmp_path / "resumed", *flags, **settings)
    resumed = runs.train(
        make_checkpoint(),
        tmp_path / "resumed",
        *flags,
        **settings,
        resume_from_checkpoint=tmp_path / "resumed" / "checkpoint-5",
    )
    assert runs.losses(resumed) == runs.losses(whole)
    assert runs.equal(runs.weights(whole), runs.weights(resumed))


@pytest.mark.parametrize(
    "variant",
    [
        {"lazy_preprocess": True},
        {"dataloader_num_workers": 2},
        {"gradient_checkpointing": True},
        {"checkpoint_every_n_blocks": 2, "gradient_checkpointing": True},
    ],
    ids=lambda variant: next(iter(variant)),
)
@pytest.mark.parametrize("flags", [("--fix_vit", "False"), LORA], ids=["full", "lora"])
def test_what_saves_memory_or_time_changes_nothing(make_checkpoint, tmp_path, flags, variant):
    plain = runs.train(make_checkpoint(), tmp_path / "plain", *flags)
    varied = runs.train(make_checkpoint(), tmp_path / "varied", *flags, **variant)
    assert runs.losses(plain) == pytest.approx(runs.losses(varied), rel=1e-6)
    assert runs.largest_difference(runs.weights(plain), runs.weights(varied)) < 1e-6
