"""Adapters that started from the weights of their base, saved as plain ones on the unchanged base."""

import json

import pytest
import torch
from helpers import runs
from peft import PeftModel

from qwen_vl.checkpoint import loading
from qwen_vl.export.merge import merge

IDS = torch.arange(40).reshape(2, 20)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.parametrize(
    ("start", "variant", "kind"),
    [
        ("pissa", ["--use_rslora"], "chatml"),
        ("olora", ["--use_rslora"], "chatml"),
        ("pissa", ["--use_dora", "--lora_bias", "lora_only"], "raw"),  # wte and lm_head train whole as well
        ("olora", ["--lora_target_modules", "c_attn", "wte", "--new_special_tokens", "<think>"], "raw"),
    ],
)
def test_a_start_from_the_base_is_saved_without_it(make_checkpoint, tmp_path, start, variant, kind):
    """Check that the final adapter is plain, of twice the rank, on the unchanged base; a checkpoint only resumes."""
    flags = ("--use_lora", "--lora_r", "4", *variant, "--init_lora_weights", start)
    settings = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2, "lora_dropout": 0}
    base = make_checkpoint(kind)
    out = runs.train(base, tmp_path / "out", *flags, **settings)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 8 and config["init_lora_weights"] is True
    merge(out, output_dir=tmp_path / "merged")
    adapted = logits(PeftModel.from_pretrained(loading.load_model(base), out))
    assert (logits(loading.load_model(tmp_path / "merged")) - adapted).abs().max() < 1e-4
    at_the_end = logits(PeftModel.from_pretrained(loading.load_model(base), out / "checkpoint-4"))
    assert (at_the_end - adapted).abs().max() < 1e-4

    settings["resume_from_checkpoint"] = out / "checkpoint-2"
    resumed = runs.train(base, tmp_path / "resumed", *flags, **settings)
    assert runs.largest_difference(runs.weights(resumed), runs.weights(out)) < 1e-6
    with pytest.raises(ValueError, match="checkpoint-2: a checkpoint of a run with --init_lora_weights"):
        runs.train(base, tmp_path / "on", "--use_lora", lora_weight_path=out / "checkpoint-2")
    with pytest.raises(ValueError, match="take the adapter in the output folder of that run"):
        merge(out / "checkpoint-2", output_dir=tmp_path / "no")
