"""Variants of LoRA, targets, learning rates of parts and new tokens: they train, load and merge."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import runs
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file

from qwen_vl.adapters import build, lora_targets
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading
from qwen_vl.export.merge import merge
from qwen_vl.training import param_groups, trainer
from qwen_vl.training.flags.arguments import TrainingArguments

IDS = torch.arange(40).reshape(2, 20)
SETTINGS = {"r": 4, "alpha": 8, "dropout": 0.0, "bias": "none", "modules_to_save": None}
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


@pytest.mark.parametrize("kind", [None, "nf4"])
def test_a_start_from_the_base_needs_whole_float_weights(kind):
    with pytest.raises(ValueError, match="ZeRO-3 and FSDP divide" + (r"(?s:.*)changes the base weights" * bool(kind))):
        lora_targets.check_base(kind, lora=True, start="pissa", in_parts=True)
    lora_targets.check_base(None, lora=True, start="pissa")


@pytest.mark.parametrize("kind", ["gptq", "nf4", "int8"])
def test_quantized_weights_are_not_divided_among_processes(kind):
    lora_targets.check_base(kind, lora=True)
    with pytest.raises(ValueError, match=rf"quantized layers \({kind}\) cannot be divided; use ZeRO-2"):
        lora_targets.check_base(kind, lora=True, in_parts=True)


def test_rslora_scales_by_the_root_of_the_rank(make_checkpoint):
    model = build.add_adapters(loading.load_model(make_checkpoint()), **SETTINGS, targets=["c_attn"], use_rslora=True)
    assert model.transformer.h[0].attn.c_attn.scaling["default"] == 8 / 4**0.5


DECODER = {"attention": {"attn.c_attn", "attn.c_proj"}, "mlp": {"mlp.w1", "mlp.w2", "mlp.c_proj"}}
PLACES = {word: {f"h.{i}.{name}" for i in (0, 1) for name in names} for word, names in DECODER.items()}
PLACES["resampler"] = {"visual.attn_pool.kv_proj", "visual.attn_pool.attn.out_proj"}
PLACES["vision"] = {
    f"visual.transformer.resblocks.{i}.{name}"
    for i in (0, 1)
    for name in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
}


@pytest.mark.parametrize("int4", [False, True], ids=["float", "int4"])
@pytest.mark.parametrize(
    ("targets", "places"),
    [
        *(([word], places) for word, places in PLACES.items()),
        (["all-linear"], set().union(*PLACES.values())),
        (["resampler", "mlp.w1"], PLACES["resampler"] | {f"h.{i}.mlp.w1" for i in (0, 1)}),
        (["c_attn", "h.1.mlp.c_proj"], {"h.0.attn.c_attn", "h.1.attn.c_attn", "h.1.mlp.c_proj"}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_words_mean_the_linears_of_a_part(make_checkpoint, make_int4_checkpoint, targets, places, int4):
    folder = make_int4_checkpoint() if int4 else make_checkpoint()
    model = loading.skeleton(folder, loading.load_config(folder))
    adapted = build.add_adapters(model, **SETTINGS, targets=targets)
    found = {name.split(".lora_A")[0] for name, _ in adapted.named_modules() if name.endswith(".lora_A")}
    assert {name.removeprefix("base_model.model.transformer.") for name in found} == places


def test_groups_of_the_optimizer_are_the_lines_of_the_table(make_checkpoint, tmp_path):
    """Check parts with their own rates and a faster B side; the rate of a part precedes that of adapters."""
    rates = param_groups.Rates(1e-3, vision=2e-3, resampler=3e-3, lora=4e-3, loraplus_ratio=8)
    model = loading.load_model(make_checkpoint())
    model = build.add_adapters(
        model, **SETTINGS | {"modules_to_save": ["attn_pool", "wte"]}, targets=["c_attn", "vision"], use_dora=True
    )
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
    model = build.add_adapters(loading.load_model(make_checkpoint()), **SETTINGS, targets=["mlp"], use_dora=True)
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
    assert Adapter.open(on).load_tokenizer(base).extra_tokens == ["<think>", "<done>"]
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


def test_an_adapter_that_does_not_fit_is_refused_before_the_base_is_loaded(make_checkpoint, tmp_path, monkeypatch):
    base = make_checkpoint()
    good = runs.train(base, tmp_path / "good", "--use_lora", "--lora_r", "8", max_steps=1)

    def variant(name, change_config=None, change_tensors=None):
        folder = Path(shutil.copytree(good, tmp_path / name))
        config, tensors = json.loads((folder / "adapter_config.json").read_text()), runs.weights(folder)
        if change_config:
            config |= change_config
        if change_tensors:
            tensors = change_tensors(tensors)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    def without_first(tensors):
        return dict(list(tensors.items())[1:])

    cases = [
        (variant("rank", {"r": 4}), r"does not fit the model in 16 tensors; .*lora_A.weight is \(8, 64\) there"),
        (variant("names", {"target_modules": ["q_proj"]}), "does not fit the model: .*q_proj"),
        (variant("other", {"target_modules": ["c_attn"]}), "does not fit the model in 12 tensors"),
        (variant("lost", None, without_first), "does not fit the model in 1 tensors; .* is absent there"),
        (variant("kind", {"peft_type": "LOHA"}), "an adapter of type"),
    ]
    cut = variant("cut")
    (cut / "adapter_model.safetensors").write_bytes((cut / "adapter_model.safetensors").read_bytes()[:-9])
    cases.append((cut, "adapter_model.safetensors is damaged"))
    monkeypatch.setattr(loading, "load_model", None)  # would be a TypeError
    for folder, said in cases:
        with pytest.raises(ValueError, match=said) as refused:
            runs.train(base, tmp_path / "out", "--use_lora", lora_weight_path=folder)
        assert str(folder) in str(refused.value)
    with pytest.raises(ValueError, match="an adapter of rank 8, and --lora_r is 16; leave --lora_r out"):
        runs.train(base, tmp_path / "out", "--use_lora", "--lora_r", "16", lora_weight_path=good)
    assert not (tmp_path / "out").exists()


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
