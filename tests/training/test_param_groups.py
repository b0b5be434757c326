"""Optimizer groups: decay, the table of what trains, and parameters in no group."""

import pytest
import torch

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.training import param_groups, trainer, tuning
from qwen_vl.training.flags.arguments import TrainingArguments

ADAPTERS = LoraOptions(r=4, alpha=8, dropout=0.0)


@pytest.fixture
def model(make_checkpoint):
    return loading.load_model(make_checkpoint())


def test_norms_biases_queries_and_tables_do_not_decay(model):
    names = {name for name, _ in model.named_parameters()}
    exempt = {name for name in names if name.endswith(("bias", "query", "pos_embed", "positional_embedding"))}
    exempt |= {name for name in names if name.split(".")[-2].startswith("ln_")}
    assert set(param_groups.decayed_names(model)) == names - exempt

    adapted = build.add_adapters(model, ADAPTERS._replace(modules_to_save=["attn_pool", "ln_f", "wte"]))
    decays = {name: param_groups.decays(name, parameter) for name, parameter in adapted.named_parameters()}
    assert all(decays[name] for name in decays if ".lora_" in name or ".wte." in name)
    assert not any(decays[name] for name in decays if name.endswith(("query", "bias")) or ".ln_" in name)


def test_the_table_counts_every_parameter_once(make_checkpoint):
    model = loading.load_model(make_checkpoint("raw"))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    whole = build.whole_modules(model)
    adapted = build.add_adapters(model, ADAPTERS._replace(modules_to_save=whole))
    lines = param_groups.rows(adapted, rates=param_groups.Rates(1e-4), weight_decay=0.1)
    rank_rows = 2 * 4 * (64 + 192 + 64 + 64 + 2 * (64 + 64))  # layers, rank, inputs and outputs of the four targets
    found = {(line.part, line.group): (line.trainable, line.total, line.weight_decay) for line in lines}
    assert found["lora on decoder", "decay"] == (rank_rows, rank_rows, 0.1)
    assert found["embeddings", "decay"][:2] == (sizes["transformer.wte.weight"],) * 2
    assert found["lm_head", "decay"][:2] == (sizes["lm_head.weight"],) * 2
    vision = {part: sum(found[key][1] for key in found if key[0] == part) for part in ("vit", "resampler")}
    assert sum(vision.values()) == sum(size for name, size in sizes.items() if ".visual." in name)
    assert sum(line.trainable for line in lines) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    text = param_groups.table(lines)
    assert "0.0001" in text and f"{sum(line.trainable for line in lines):,} of" in text.splitlines()[-1]


def test_a_run_without_anything_to_train_is_refused(model):
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        param_groups.rows(model, rates=param_groups.Rates(1e-4), weight_decay=0.1)


def test_a_parameter_outside_of_every_optimizer_group_is_refused(model):
    optimizer = torch.optim.AdamW(
        [parameter for name, parameter in model.named_parameters() if name != "lm_head.weight"]
    )
    with pytest.raises(ValueError, match=r"no optimizer group, the first is lm_head\.weight"):
        param_groups.check_groups(model, optimizer)


def test_norms_and_the_like_are_in_the_group_without_decay(make_checkpoint, tmp_path):
    training = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, use_cpu=True)
    model = tuning.freeze_for_full(loading.load_model(make_checkpoint()), fix_vit=False)
    optimizer = trainer.QWenTrainer(model=model, args=training, tokenizer=None).create_optimizer()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {0.0: set(), 0.1: set()}
    for group in optimizer.param_groups:
        groups[group["weight_decay"]] |= {names[p] for p in group["params"]}
    trained = {name for parameter, name in names.items() if parameter.requires_grad}
    assert groups[0.1] == trained & set(param_groups.decayed_names(model)) and groups[0.0] == trained - groups[0.1]


def test_a_rate_in_a_tensor_stays_one_for_each_group(model):
    """Check what torchao's optimizers, such as adamw_torch_8bit, demand: each group has a tensor of its own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-4))
    param_groups.split_groups(optimizer, model, param_groups.Rates(1e-4, resampler=1e-3))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert all(isinstance(rate, torch.Tensor) for rate in rates) and len({id(rate) for rate in rates}) == 2
    assert sorted({rate.item() for rate in rates}) == pytest.approx([1e-4, 1e-3])
