"""Q-LoRA: adapters on quantized weights train as on float weights, are saved, continued and used for answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import quantized, runs
from safetensors.torch import save_file

from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading, quantization
from qwen_vl.serving import engine

RATE = {"learning_rate": 1e-2}
KINDS = {"gptq": (), "nf4": (), "int8": ("--quantization", "int8")}


@pytest.fixture
def base_for(make_checkpoint, make_int4_checkpoint):
    """Return a function that gives the model folder for a kind of Q-LoRA."""
    return lambda kind: make_int4_checkpoint() if kind == "gptq" else make_checkpoint()


def evaluation_loss(model, out, *flags, **settings):
    """Return (last evaluation loss, output folder) of a run of finetune.main that evaluates after each step."""
    out.parent.mkdir(exist_ok=True)
    data = runs.write_data(out.parent)
    out = runs.train(model, out, *flags, eval_data_path=data, eval_strategy="steps", eval_steps=1, **settings)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry][-1], out


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_quantized_weights_learns_is_continued_and_answers(base_for, tmp_path, kind):
    flags = ("--q_lora", *KINDS[kind])
    loss, out = evaluation_loss(base_for(kind), tmp_path / "first" / "out", *flags, **RATE)
    losses = runs.losses(out)
    assert losses[-1] < losses[0] - 0.1
    assert json.loads((out / "base.json").read_text())["quantization"] == kind
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in runs.weights(out).values())
    still = {"lora_weight_path": out, "max_steps": 1, "learning_rate": 0}
    again, on = evaluation_loss(base_for(kind), tmp_path / "second" / "out", *flags, **still)
    assert again == loss and runs.equal(runs.weights(on), runs.weights(out))

    model, tokenizer = engine.load(out, device="cpu")
    assert quantization.kind_of(model.config) == kind
    answer, _ = model.chat(tokenizer, "1+1?", history=None, max_new_tokens=2, do_sample=False)
    assert isinstance(answer, str)


def test_adapters_on_int4_learn_what_they_learn_on_the_weights_it_stands_for(
    make_checkpoint, make_int4_checkpoint, tmp_path
):
    """Compare losses and adapters, with and without gradient checkpointing; SGD does not amplify rounding."""
    twin = Path(shutil.copytree(make_checkpoint(), tmp_path / "twin"))
    tensors = {name: tensor.half().float() for name, tensor in runs.weights(twin).items()}
    for name in tensors:
        if ".h." in name and name.removesuffix(".weight").endswith(quantized.LINEARS):
            original = runs.weights(make_checkpoint())[name]
            tensors[name] = quantized.dequantized(*quantized.rounded(original)).half().float().contiguous()
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    sgd = {"optim": "sgd", "learning_rate": 10}
    expected = runs.train(twin, tmp_path / "float", "--use_lora", **sgd)
    assert runs.losses(expected)[-1] < runs.losses(expected)[0] - 0.1
    for flags in (("--use_lora",), ("--use_lora", "--q_lora", "--gradient_checkpointing")):
        found = runs.train(make_int4_checkpoint(), tmp_path / f"int4{len(flags)}", *flags, **sgd)
        assert runs.losses(found) == pytest.approx(runs.losses(expected), abs=1e-5)
        assert runs.largest_difference(runs.weights(found), runs.weights(expected)) < 2e-4


@pytest.mark.parametrize("kind", ["gptq", "nf4"])
def test_bfloat16_with_packed_rows(base_for, tmp_path, kind):
    flags = ("--q_lora", "--bf16", "--gradient_checkpointing", "--packing", "auto", "--lora_target_modules")
    out = runs.train(base_for(kind), tmp_path / "out", *flags, "all-linear", **RATE, model_max_length=128)
    losses = runs.losses(out)
    assert losses[-1] < losses[0] - 0.1
    adapted = {name.split(".lora_")[0] for name in runs.weights(out)}
    assert any(".visual.attn_pool.kv_proj" in name for name in adapted)


def test_the_table_counts_the_weights_that_packed_ones_stand_for(base_for, tmp_path, capsys):
    """Check the counts, and that lm_head and the vision tower stay float."""
    counts = {}
    for kind in KINDS:
        out = runs.train(base_for(kind), tmp_path / kind, "--q_lora", *KINDS[kind], max_steps=1)
        lines = [line.split() for line in capsys.readouterr().err.splitlines()]
        counts[kind] = next(int(line[2].replace(",", "")) for line in lines if line[:2] == ["decoder", "no"])
        model, _ = load_adapted(out)
        assert type(model.lm_head) is type(model.transformer.visual.attn_pool.kv_proj) is torch.nn.Linear
        assert all(p.is_floating_point() for p in model.transformer.visual.parameters())
    assert counts == {"gptq": 57_664, "nf4": 58_048, "int8": 58_048}  # the biases of GPTQ layers are no parameters


REFUSED = {
    "full": ([], "full fine-tuning cannot train quantized weights (gptq); add --q_lora"),
    "DoRA": (["--q_lora", "--use_dora"], "--use_dora reads the base weights, which a GPTQ layer has not"),
    "PiSSA": (["--q_lora", "--init_lora_weights", "pissa"], "changes the base weights, which cannot be done"),
    "biases": (["--q_lora", "--lora_bias", "all"], "--lora_bias all: biases of GPTQ layers cannot train"),
    "casts": (["--q_lora", "--bf16_full_eval"], "cast all weights, and quantized ones (gptq) would be others"),
    "nf4": (["--q_lora", "--quantization", "nf4"], "is quantized already (GPTQ with 4 bits)"),
    "whole": (["--q_lora", "--modules_to_save", "w1"], "--modules_to_save w1: quantized weights cannot train"),
    "name": (["--q_lora", "--lora_target_modules", "q_proj"], "--lora_target_modules q_proj: matches nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_to_int4_is_refused_before_it_is_loaded(make_int4_checkpoint, tmp_path, monkeypatch, name):
    flags, said = REFUSED[name]
    monkeypatch.setattr(loading, "load_model", None)  # would be a TypeError
    with pytest.raises(ValueError) as refused:
        runs.train(make_int4_checkpoint(), tmp_path / "out", *flags)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--modules_to_save", "wte", "mlp"], "--modules_to_save mlp: quantized weights cannot train"),
        (["--modules_to_save", "h.1"], "--modules_to_save h.1: quantized weights cannot train"),
        (["--quantization", "int8", "--modules_to_save", "w1"], "--modules_to_save w1: quantized weights cannot"),
        (["--quantization", "int8", "--use_dora"], "--use_dora reads the base weights"),
    ],
    ids=str,
)
def test_what_cannot_be_done_to_weights_of_bitsandbytes_is_refused_before_they_are_loaded(
    make_checkpoint, tmp_path, monkeypatch, flags, said
):
    monkeypatch.setattr(loading, "load_model", None)  # would be a TypeError
    with pytest.raises(ValueError, match=said):
        runs.train(make_checkpoint(), tmp_path / "out", "--q_lora", *flags)


def test_everything_that_does_not_go_with_int4_is_said_at_once(make_int4_checkpoint, tmp_path):
    flags = ("--q_lora", "--use_dora", "--init_lora_weights", "olora", "--lora_bias", "lora_only")
    with pytest.raises(ValueError, match=r"(?s)--use_dora .*--init_lora_weights olora.*--lora_bias lora_only"):
        runs.train(make_int4_checkpoint(), tmp_path / "out", *flags)


def test_a_file_that_was_cut_while_it_came_is_refused_before_work_starts(base_for, tmp_path, monkeypatch):
    damaged = Path(shutil.copytree(base_for("gptq"), tmp_path / "cut"))
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[:-1000])
    monkeypatch.setattr(loading, "load_model", None)
    with pytest.raises(ValueError, match=r"model.safetensors: the weights cannot be read .* get it again"):
        runs.train(damaged, tmp_path / "out", "--q_lora")


def test_dora_goes_with_nf4(make_checkpoint, tmp_path):
    out = runs.train(make_checkpoint(), tmp_path / "out", "--q_lora", "--use_dora", **RATE)
    assert any("lora_magnitude_vector" in name for name in runs.weights(out))
