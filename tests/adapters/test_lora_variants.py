"""Variants of LoRA, targets, learning rates of parts and new tokens: they train, load and merge."""

import json
import re

import pytest
import torch
from helpers import runs
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer

from qwen_vl.adapters import build, lora_targets
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.adapters.attach import load_adapted
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.training import param_groups, trainer
from qwen_vl.training.flags.arguments import TrainingArguments

IDS = torch.arange(40).reshape(2, 20)
OPTIONS = LoraOptions(r=4, alpha=8, dropout=0.0)
VARIANTS = {
    "rsLoRA": ("--use_rslora",),
    "DoRA": ("--use_dora",),
    "LoRA+": ("--loraplus_lr_ratio", "4"),
    "PiSSA": ("--init_lora_weights", "pissa"),
    "OLoRA": ("--init_lora_weights", "olora"),
    "gaussian": ("--init_lora_weights", "gaussian"),
    "everywhere": ("--lora_target_modules", "all-linear"),
    "DoRA in the vision tower": ("--use_dora", "--lora_target_modules", "vision", "resampler", "c_attn"),
}


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.fixture(scope="module")
def first_loss(make_checkpoint, tmp_path_factory):
    """Return the loss of the base on the first batch of every run."""
    out = tmp_path_factory.mktemp("base") / "out"
    return runs.losses(runs.train(make_checkpoint(), out, max_steps=1, learning_rate=0))[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_comes_back_and_merges(make_checkpoint, first_loss, tmp_path, name):
    """Check that, and that the first loss is that of the base for every start."""
    base, flags = make_checkpoint(), ("--use_lora", "--lora_r", "8", "--lora_dropout", "0", *VARIANTS[name])
    out = runs.train(base, tmp_path / "out", *flags, learning_rate=1e-2)
    losses = runs.losses(out)
    assert losses[0] == pytest.approx(first_loss, abs=1e-4) and losses[-1] < losses[0] - 0.05
    adapted = logits(PeftModel.from_pretrained(loading.load_model(base), out))
    merged = logits(load_adapted(out)[0])
    assert (adapted - logits(loading.load_model(base))).abs().max() > 1e-2
    assert (adapted - merged).abs().max() < 1e-4
    assert all(tensor.any() for name, tensor in runs.weights(out).items() if ".lora_B" in name)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["use_rslora"] == (name == "rsLoRA") and config["use_dora"] == name.startswith("DoRA")


def test_rows_of_new_tokens_cannot_train_under_zero3(make_checkpoint, tmp_path, monkeypatch):
    """Check that: PEFT gathers them on CUDA alone. A base model trains its embeddings whole and may have new tokens."""
    flags = ("--use_lora", "--new_special_tokens", "<think>")
    out = runs.train(make_checkpoint(), tmp_path / "out", *flags, max_steps=1)
    monkeypatch.setattr(lora_targets, "is_deepspeed_zero3_enabled", lambda: True)
    more = {"data_path": write_tagged(tmp_path), "max_steps": 1}
    with pytest.raises(ValueError, match=r"use ZeRO-2 .* or FSDP, or train both whole"):
        runs.train(make_checkpoint(), tmp_path / "new", *flags, **more)
    with pytest.raises(ValueError, match=r"use ZeRO-2 .* or FSDP, or train both whole"):
        runs.train(make_checkpoint(), tmp_path / "on", "--use_lora", lora_weight_path=out, **more)
    runs.train(make_checkpoint("raw"), tmp_path / "base", *flags, **more)


def test_rslora_scales_by_the_root_of_the_rank(make_checkpoint):
    options = OPTIONS._replace(targets=["c_attn"], use_rslora=True)
    model = build.add_adapters(loading.load_model(make_checkpoint()), options)
    assert model.transformer.h[0].attn.c_attn.scaling["default"] == 8 / 4**0.5


def test_groups_of_the_optimizer_are_the_lines_of_the_table(make_checkpoint, tmp_path):
    """Check parts with their own rates and a faster B side; the rate of a part precedes that of adapters."""
    rates = param_groups.Rates(1e-3, vision=2e-3, resampler=3e-3, lora=4e-3, loraplus_ratio=8)
    model = loading.load_model(make_checkpoint())
    options = OPTIONS._replace(modules_to_save=["attn_pool", "wte"], targets=["c_attn", "vision"], use_dora=True)
    model = build.add_adapters(model, options)
    lines = {}
    for line in param_groups.rows(model, rates=rates, weight_decay=0.1):
        if line.trainable:
            key = line.learning_rate, line.weight_decay
            lines[key] = lines.get(key, 0) + line.trainable
    training = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, learning_rate=1e-3, use_cpu=True)
    made = trainer.QWenTrainer(model=model, args=training, tokenizer=None, rates=rates)
    optimizer = made.create_optimizer()
    groups = {}
    for group in optimizer.param_groups:
        key = group["lr"], group["weight_decay"]
        groups[key] = groups.get(key, 0) + sum(parameter.numel() for parameter in group["params"])
    assert groups == lines
    assert {rate for rate, _ in groups} == {1e-3, 3e-3, 2e-3, 8 * 2e-3, 4e-3, 8 * 4e-3}
    made.create_scheduler(num_training_steps=10, optimizer=optimizer)
    assert sorted(made.lr_scheduler.base_lrs) == sorted(group["initial_lr"] for group in optimizer.param_groups)


def test_lora_plus_gives_the_rates_that_peft_does(make_checkpoint):
    options = OPTIONS._replace(targets=["mlp"], use_dora=True)
    model = build.add_adapters(loading.load_model(make_checkpoint()), options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    expected = {names[id(p)]: group["lr"] for group in theirs.param_groups for p in group["params"]}
    rates = param_groups.Rates(1e-3, loraplus_ratio=16)
    assert {name: rates.of(name, p) for name, p in model.named_parameters() if p.requires_grad} == expected


def test_rates_of_parts_in_a_run(make_checkpoint, tmp_path, capsys):
    out = runs.train(make_checkpoint(), tmp_path / "full", fix_vit=False, vision_lr=0, resampler_lr=1e-3, max_steps=2)
    before, after = runs.weights(make_checkpoint()), runs.weights(out)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".attn_pool." in name for name in moved) and "lm_head.weight" in moved
    assert not any(".visual." in name and ".attn_pool." not in name for name in moved)
    assert re.search(r"^vit +yes +[\d,]+ +0 ", capsys.readouterr().err, flags=re.MULTILINE)
    with pytest.raises(ValueError, match="--vision_lr: nothing of that part trains in this run"):
        runs.train(make_checkpoint(), tmp_path / "fixed", vision_lr=1e-3)
    with pytest.raises(ValueError, match="--resampler_lr: nothing of that part"):
        runs.train(make_checkpoint(), tmp_path / "lora", "--use_lora", resampler_lr=1e-3)


def write_tagged(folder):
    """Return the path of a data file whose answers contain <think> and <done>."""
    samples = [(None, f"{i}?", f"<think>{i}<done>{i + 1}") for i in range(8)]
    return runs.write_data(folder, samples)


@pytest.mark.parametrize("int4", [False, True], ids=["float", "int4"])
def test_new_tokens_train_their_rows_alone(make_checkpoint, make_int4_checkpoint, tmp_path, int4):
    base = make_int4_checkpoint() if int4 else make_checkpoint()
    flags = ("--q_lora" if int4 else "--use_lora", "--new_special_tokens", "<think>", "<done>")
    out = runs.train(base, tmp_path / "out", *flags, data_path=write_tagged(tmp_path), learning_rate=1e-2)
    model, tokenizer = load_adapted(out)
    ids = tokenizer.convert_tokens_to_ids(["<think>", "<done>"])
    assert ids == loading.load_tokenizer(base).convert_tokens_to_ids(["<|extra_0|>", "<|extra_1|>"])
    assert tokenizer.encode_message("<think>1<done>")[0] == [ids[0], *tokenizer.encode("1"), ids[1]]
    rows = {name: tensor for name, tensor in runs.weights(out).items() if "trainable_tokens" in name}
    assert {tuple(tensor.shape) for tensor in rows.values()} == {(2, 64)} and len(rows) == 2
    origin = loading.load_model(base, dtype=torch.float32)
    if not int4:
        for part in ("transformer.wte", "lm_head"):
            before, after = origin.get_submodule(part).weight, model.get_submodule(part).weight
            assert (before != after).any(dim=1).nonzero().flatten().tolist() == ids
    on = runs.train(
        base, tmp_path / "on", flags[0], data_path=write_tagged(tmp_path), lora_weight_path=out, max_steps=1
    )
    assert Adapter.open(on).load_tokenizer(ModelFolder.open(base)).extra_tokens == ["<think>", "<done>"]
    assert runs.losses(on)[0] < runs.losses(out)[0] - 0.1


def test_new_tokens_in_full_training_and_where_embeddings_train_whole(make_checkpoint, tmp_path):
    tokens = ("--new_special_tokens", "<think>", "<done>")
    data = write_tagged(tmp_path)
    full = runs.train(make_checkpoint(), tmp_path / "full", *tokens, data_path=data, max_steps=1)
    assert loading.load_tokenizer(full).extra_tokens == ["<think>", "<done>"]
    whole = runs.train(make_checkpoint("raw"), tmp_path / "lora", "--use_lora", *tokens, data_path=data, max_steps=1)
    assert not any("trainable_tokens" in name for name in runs.weights(whole))
    with pytest.raises(ValueError, match="a special token already"):
        runs.train(make_checkpoint(), tmp_path / "out", "--new_special_tokens", "<img>")


# The code of a user in a process without this package.
ELSEWHERE = """
import importlib.util, sys
import torch
from transformers import AutoTokenizer
assert importlib.util.find_spec("qwen_vl") is None
folder = sys.argv[1]
SAMPLE
model.eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert tokenizer.convert_tokens_to_ids("<think>") == tokenizer.special_tokens["<think>"]
with torch.no_grad():
    torch.save(model(torch.arange(40).reshape(2, 20)).logits, sys.argv[2])
"""


@pytest.mark.slow
def test_an_adapter_folder_is_plain_peft_where_this_package_is_not(make_checkpoint, tmp_path):
    flags = ("--use_lora", "--use_dora", "--new_special_tokens", "<think>")
    out = runs.train(make_checkpoint(), tmp_path / "out", *flags, learning_rate=1e-2)
    document = (runs.ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
    (sample,) = re.findall(r"^```python\n(.*?)^```$", document, flags=re.DOTALL | re.MULTILINE)
    assert '"output/lora"' in sample
    code = ELSEWHERE.replace("SAMPLE", sample.replace('"output/lora"', "folder"))
    runs.python_elsewhere(tmp_path, "-c", code, out, tmp_path / "logits.pt")
    here = logits(PeftModel.from_pretrained(loading.load_model(make_checkpoint()), out))
    assert torch.equal(torch.load(tmp_path / "logits.pt"), here)
