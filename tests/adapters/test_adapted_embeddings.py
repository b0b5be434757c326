"""Adapters that train embeddings or lm_head: whole, by adapters or by rows of new tokens.

A merged model answers as base + adapter do, and knows the new tokens. Impossible choices are refused before training.
"""

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers import runs
from peft import PeftModel

from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading
from qwen_vl.cli import export, quantize, verify
from qwen_vl.export.merge import merge
from qwen_vl.export.quantize import quantize as quantize_quantize
from qwen_vl.export.verify import comparison

TOKENS = ["<think>", "<done>"]
NEW = ("--new_special_tokens", *TOKENS)
CHOICES = {
    "nothing": (),
    "lm_head whole": ("--modules_to_save", "lm_head"),
    "lm_head adapted": ("--lora_target_modules", "c_attn", "lm_head"),
    "wte whole": ("--modules_to_save", "wte"),
    "wte adapted": ("--lora_target_modules", "c_attn", "wte"),
    "both whole": ("--modules_to_save", "transformer.wte", "lm_head"),
    "both adapted": ("--lora_target_modules", "all-linear", "wte", "lm_head"),
    "one whole, one adapted": ("--lora_target_modules", "c_attn", "lm_head", "--modules_to_save", "wte"),
}
BASES = {  # base: the flags that put adapters on it
    "chat": "--use_lora",
    "base": "--use_lora",
    "nf4": "--q_lora",  # float weights, quantized while loading
    "nf4 file": "--q_lora",
    "Int4": "--q_lora",
}
VARIANTS = {
    "DoRA": ("--use_dora",),
    "rsLoRA": ("--use_rslora",),
    "PiSSA": ("--init_lora_weights", "pissa"),
    "OLoRA": ("--init_lora_weights", "olora"),
    "all biases": ("--lora_bias", "all"),
    "biases": ("--lora_bias", "lora_only"),
    "everywhere": ("--lora_target_modules", "all-linear"),
}
USUAL = {("chat", choice) for choice in CHOICES}  # in the default test run, with new tokens
USUAL |= {("base", "nothing"), ("base", "wte whole"), ("nf4", "nothing"), ("nf4 file", "nothing"), ("Int4", "nothing")}


def cases():
    """Return every base with every choice, without and with new tokens; most are marked slow."""
    for base, choice, is_new in product(BASES, CHOICES, (True, False)):
        if is_new or choice != "nothing":
            is_usual = is_new and (base, choice) in USUAL
            yield pytest.param(base, choice, is_new, marks=() if is_usual else pytest.mark.slow)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint, make_int4_checkpoint, tmp_path_factory):
    """Return a function from the name of a base to its folder."""
    stored = tmp_path_factory.mktemp("nf4") / "nf4"

    def folder(base):
        if base == "nf4 file" and not stored.exists():
            quantize_quantize.quantize_nf4(make_checkpoint(), stored)
        return {"base": make_checkpoint("raw"), "nf4 file": stored}.get(
            base, make_int4_checkpoint() if base == "Int4" else make_checkpoint()
        )

    return folder


def write_data(folder):
    """Return the path of a data file whose answers contain the new tokens."""
    images = [f"images/train_0{i}.jpg" if i % 2 else None for i in range(4)]
    return runs.write_data(folder, [(name, f"{i}?", f"<think>{i}<done>{i + 1}") for i, name in enumerate(images)])


def train(base, out, *flags, **settings):
    settings = {"data_path": write_data(out.parent), "max_steps": 2, "learning_rate": 1e-2} | settings
    return runs.train(base, out, "--lora_r", "4", *flags, **settings)


def is_refused(base, choice, is_new):
    """Return whether the rows of new tokens and an adapter would be on the same module."""
    whole_anyway = base == "base" and "--modules_to_save" not in CHOICES[choice]
    return is_new and "adapted" in choice and not whole_anyway


@pytest.mark.parametrize(("base", "choice", "is_new"), cases())
def test_what_trains_in_the_embeddings_is_merged_or_refused(
    checkpoint, make_checkpoint, tmp_path, monkeypatch, base, choice, is_new
):
    folder, flags = checkpoint(base), (BASES[base], *CHOICES[choice], *(NEW if is_new else ()))
    if is_refused(base, choice, is_new):
        monkeypatch.setattr(loading, "load_model", None)  # would be a TypeError
        with pytest.raises(ValueError, match=r"--lora_target_modules .*: the rows of --new_special_tokens train there"):
            train(folder, tmp_path / "out", *flags)
        return
    adapter = train(folder, tmp_path / "out", *flags)
    floats = checkpoint("base") if base == "base" else make_checkpoint()
    stored_packed = base in ("nf4 file", "Int4")
    for number, options in enumerate([{"onto": floats}, {"dequantize": True}] if stored_packed else [{}]):
        out = tmp_path / str(number)
        merge(adapter, output_dir=out, **options)
        # nf4 and Int4 weights compute in float32 here, and the merged ones of Int4 are stored in half precision.
        trained_on = folder if "dequantize" in options else floats
        tolerance = 2e-3 if base == "Int4" else 1e-5
        adapted = logits(PeftModel.from_pretrained(loading.load_model(trained_on), adapter), folder)
        assert comparison.compare(adapted, logits(loading.load_model(out), folder)).largest < tolerance
        assert comparison.compare(adapted, logits(loading.load_model(trained_on), folder)).largest > 1e-2
        check_speaks(out, is_new, loading.load_tokenizer(folder))


def logits(model, base):
    """Return logits for a question about an image, and for the two ids of the new tokens."""
    tokenizer = loading.load_tokenizer(base)
    inputs = comparison.image_prompt(tokenizer, model.config)
    new = torch.tensor([tokenizer.convert_tokens_to_ids(["<|extra_0|>", "<|extra_1|>"])])
    return comparison.logits(model, inputs | {"input_ids": torch.cat([inputs["input_ids"], new], dim=1)})


def check_speaks(folder, is_new, plain):
    """Check that a merged model's tokenizer knows the new tokens, and that the model chats with it."""
    tokenizer = loading.load_tokenizer(folder)
    assert tokenizer.extra_tokens == (TOKENS if is_new else [])
    ids = plain.convert_tokens_to_ids(["<|extra_0|>", "<|extra_1|>"])
    assert not is_new or tokenizer.convert_tokens_to_ids(TOKENS) == ids
    answer, _ = loading.load_model(folder).chat(tokenizer, "1?", history=None, max_new_tokens=2, do_sample=False)
    assert isinstance(answer, str)


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=() if name in ("DoRA", "PiSSA") else pytest.mark.slow) for name in VARIANTS]
)
def test_variants_with_new_tokens_are_merged(make_checkpoint, tmp_path, variant):
    adapter = train(make_checkpoint(), tmp_path / "out", "--use_lora", *NEW, *VARIANTS[variant])
    assert merge(adapter, output_dir=tmp_path / "merged").difference.largest < 1e-5
    adapted = logits(PeftModel.from_pretrained(loading.load_model(make_checkpoint()), adapter), make_checkpoint())
    assert (
        comparison.compare(adapted, logits(loading.load_model(tmp_path / "merged"), make_checkpoint())).largest < 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_new_tokens_on_a_base_in_half_precision(make_checkpoint, tmp_path, dtype):
    """Check exports in the stored dtype, and in the wider one that base + adapter compute in."""
    base = Path(shutil.copytree(make_checkpoint(), tmp_path / "base"))
    loading.load_model(base, dtype=dtype).save_pretrained(base)
    adapter = train(base, tmp_path / "out", "--use_lora", *NEW)
    export.main([str(adapter), str(tmp_path / "same")])
    assert {tensor.dtype for tensor in runs.weights(tmp_path / "same").values()} == {dtype}
    merge(adapter, output_dir=tmp_path / "wide", dtype="float32")
    adapted = logits(PeftModel.from_pretrained(loading.load_model(base), adapter), base)
    assert comparison.compare(adapted, logits(loading.load_model(tmp_path / "wide"), base)).largest < 1e-5
    check_speaks(tmp_path / "same", True, loading.load_tokenizer(base))


def test_new_tokens_all_the_way(make_checkpoint, tmp_path, capsys):
    """Resume and continue a run, compare it with its merged model, chat with it and quantize it."""
    saving_each = {"save_strategy": "steps", "save_steps": 1}
    first = train(make_checkpoint(), tmp_path / "first", "--use_lora", *NEW, **saving_each)
    resume = {"resume_from_checkpoint": first / "checkpoint-1", **saving_each}
    resumed = train(make_checkpoint(), tmp_path / "resumed", "--use_lora", *NEW, **resume)
    assert runs.equal(runs.weights(first), runs.weights(resumed))
    adapter = train(make_checkpoint(), tmp_path / "on", "--use_lora", lora_weight_path=first)
    assert json.loads((adapter / "adapter_config.json").read_text())["trainable_token_indices"].keys() == {
        "wte",
        "lm_head",
    }
    for source, name in ((first / "checkpoint-1", "half"), (adapter, "merged")):
        merge(source, output_dir=tmp_path / name)
    capsys.readouterr()
    for flags in ([], ["--from_disk"]):
        verify.main([str(adapter), str(tmp_path / "merged"), *flags])
        assert "the same within 0.0001" in capsys.readouterr().out
    with pytest.raises(ValueError, match="differ by"):
        verify.main([str(adapter), str(tmp_path / "half")])
    model, tokenizer = load_adapted(adapter)
    assert tokenizer.extra_tokens == TOKENS
    assert isinstance(model.chat(tokenizer, "1?", history=None, max_new_tokens=2)[0], str)
    calibration = ["--calibration", str(write_data(tmp_path)), "--image_folder", str(runs.GOLDEN), "--group_size", "32"]
    quantize.main([str(tmp_path / "merged"), str(tmp_path / "int4"), *calibration])
    check_speaks(tmp_path / "int4", True, loading.load_tokenizer(make_checkpoint()))
