"""Names and rules of `families.v1`, compared with the real model."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.families import v1
from qwen_vl.model import QWenConfig

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = LoraOptions(r=4, alpha=8, dropout=0.0, targets=["c_attn"])


@pytest.fixture
def model(make_checkpoint):
    return loading.load_model(make_checkpoint())


@pytest.fixture
def names(model):
    return [name for name, _ in model.named_parameters()]


def linears(model):
    return {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_paths_lead_to_what_they_name(model, names):
    inner = v1.inner_model(model)
    assert model.get_submodule(v1.EMBEDDINGS) is model.get_input_embeddings()
    assert model.get_submodule(v1.HEAD) is model.get_output_embeddings() and v1.HEAD_WEIGHT in names
    assert model.get_submodule(v1.DECODER) is v1.decoder_blocks(model)
    assert model.get_submodule(v1.TOWER) is v1.tower(model) is v1.tower(inner)
    assert model.get_submodule(v1.RESAMPLER) is v1.resampler(model)
    assert model.get_submodule(v1.VIT) is v1.vit(v1.tower(model))
    assert {path for path in v1.TOKEN_TABLES.values()} == {v1.EMBEDDINGS, v1.HEAD}
    for name, path in v1.TOKEN_TABLES.items():
        assert path.endswith(name) and model.get_submodule(path).weight.shape[0] == model.config.vocab_size
    inputs = inspect.signature(inner.forward).parameters
    assert {v1.TOWER_OUTPUT, v1.VIT_OUTPUT} < set(inputs)


def test_what_follows_the_vit_is_named(model):
    """Check that all other parameters of the tower are those of the ViT, by the tower's own rule."""
    tower = v1.tower(model).requires_grad_(False)
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(True)
        assert tower.vit_trains() is not name.startswith(v1.AFTER_VIT), name
        parameter.requires_grad_(False)


def test_every_leaf_that_is_named_exists(names):
    leaves = {name.rpartition(".")[2] for name in names}
    assert leaves > v1.UNDECAYED_LEAVES
    assert len([name for name in names if name.endswith(v1.FIXED_TABLE)]) == 1


def test_each_parameter_is_in_its_part(model, names):
    inner = v1.inner_model(model)
    own = {
        v1.RESAMPLER_PART: v1.resampler(model),
        v1.EMBEDDINGS_PART: inner.get_input_embeddings(),
        v1.HEAD_PART: model.get_output_embeddings(),
    }
    ids = {part: {id(parameter) for parameter in module.parameters()} for part, module in own.items()}
    ids[v1.VIT_PART] = {id(p) for p in v1.tower(model).parameters()} - ids[v1.RESAMPLER_PART]
    ids[v1.DECODER_PART] = {id(p) for p in model.parameters()} - set().union(*ids.values())
    parameters = dict(model.named_parameters())
    for part, _ in v1.PARTS:
        assert {id(parameters[name]) for name in names if v1.part_of(name) == part} == ids[part] != set(), part
    assert {name for name in names if v1.is_vision(name)} == {
        name for name in names if v1.part_of(name) in (v1.VIT_PART, v1.RESAMPLER_PART)
    }


def test_norms_do_not_decay_and_matrices_do(model, names):
    norms = {
        f"{path}.{leaf}"
        for path, module in model.named_modules()
        if type(module).__name__.endswith("Norm")
        for leaf, _ in module.named_parameters()
    }
    assert {name for name in names if v1.is_norm(name)} == norms
    decayed = {name for name, p in model.named_parameters() if v1.decays(name, p.dim())}
    assert not decayed & norms and decayed >= {f"{path}.weight" for path in linears(model)}


def test_words_of_targets_divide_the_linears_among_them(model):
    found = [path for path in linears(model) for word in v1.LORA_WORDS.values() if re.fullmatch(word, path)]
    assert sorted(found) == sorted(linears(model) - {v1.HEAD})
    own = {word: [path for path in found if re.fullmatch(pattern, path)] for word, pattern in v1.LORA_WORDS.items()}
    assert all(own.values()) and v1.ALL_LINEAR not in own
    assert all(v1.part_of(path + ".weight") == v1.RESAMPLER_PART for path in own["resampler"])
    assert all(v1.part_of(path + ".weight") == v1.VIT_PART for path in own["vision"])


def test_default_targets_are_linears_of_the_decoder(model):
    ends = {path for path in linears(model) for name in v1.DEFAULT_LORA_TARGETS if path.endswith(f".{name}")}
    assert all(path.startswith(f"{v1.DECODER}.") for path in ends)
    for name in v1.DEFAULT_LORA_TARGETS:
        assert sum(path.endswith(f".{name}") for path in ends) == len(v1.decoder_blocks(model)), name


def test_packed_linears_are_those_of_the_decoder_and_of_no_float_module(model):
    packed = v1.packed_linears(model.config)
    assert sorted(packed) == sorted(path for path, _ in v1.block_linears(model))
    floats = {path for path in linears(model) for start in v1.FLOAT_MODULES if f"{path}.".startswith(f"{start}.")}
    assert floats == linears(model) - set(packed)
    assert all(v1.may_be_zero_bias(f"{path}.bias") for path in packed)
    assert not any(v1.may_be_zero_bias(f"{path}.bias") for path in floats)
    assert not any(v1.may_be_zero_bias(f"{path}.weight") for path in packed)


def test_packed_linears_run_in_this_order_and_share_these_inputs(model):
    block, seen = v1.new_block(model.config), []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.append((name, inputs[0].data_ptr())))
    with torch.no_grad():
        block(torch.randn(1, 5, model.config.hidden_size), *v1.block_inputs(model.config, 5))
    assert [name for name, _ in seen] == [name for group in v1.QUANTIZED_LINEARS for name in group]
    places = dict(seen)
    for group in v1.QUANTIZED_LINEARS:
        assert len({places[name] for name in group}) == 1, group


def test_a_block_alone_computes_what_it_does_in_the_model(model):
    """Compare it with the model on whole sequences without padding."""
    states = model.eval()(torch.arange(7)[None], output_hidden_states=True).hidden_states
    block = v1.decoder_blocks(model)[0]
    found = block(states[0], *v1.block_inputs(model.config, 7, "cpu"))[0]
    assert torch.allclose(found, states[1], atol=1e-6)


def test_blocks_are_those_of_the_model(model, names):
    blocks = {v1.block_of(name) for name in names}
    kinds = {path + "." for path, module in model.named_modules() if isinstance(module, v1.BLOCK_CLASSES)}
    assert blocks == kinds | {f"{v1.HEAD}.", None}
    assert all(name.startswith(v1.block_of(name) or "") for name in names)
    count = len(v1.decoder_blocks(model))
    assert {v1.block_name(i) for i in range(count)} == {b for b in blocks if b and b.startswith(f"{v1.DECODER}.")}
    assert v1.block_of("transformer.h.10.ln_1.weight") == "transformer.h.10."
    whole = {name for name in names if v1.block_of(name) is None}
    assert whole and not any(name.startswith((f"{v1.DECODER}.", f"{v1.VIT_BLOCKS}.")) for name in whole)


def test_block_classes_are_those_that_are_wrapped(model):
    expected = {kind.__name__ for kind in v1.BLOCK_CLASSES}
    assert set(model._no_split_modules) == expected
    files = sorted((ROOT / "configs/fsdp").glob("*.json"))
    assert files
    for path in files:
        assert set(json.loads(path.read_text(encoding="utf-8"))["transformer_layer_cls_to_wrap"]) == expected, path


def test_modules_are_found_below_adapters(model):
    inner, tower = v1.inner_model(model), v1.tower(model)
    adapted = build.add_adapters(model, ADAPTERS)
    assert v1.inner_model(adapted) is inner and v1.tower(adapted) is tower
    assert len(v1.decoder_blocks(adapted)) == 2 and v1.model_dtype(adapted) == torch.float32


def test_a_tower_that_trains_whole_is_the_one_that_runs(model):
    adapted = build.add_adapters(model, ADAPTERS._replace(modules_to_save=["visual"]))
    assert v1.tower(adapted).vit_trains()
    assert any(parameter.requires_grad for parameter in v1.resampler(adapted).parameters())


def test_the_dtype_of_a_model_is_that_of_what_nothing_stores_otherwise(make_checkpoint):
    model = loading.load_model(make_checkpoint(), dtype=torch.bfloat16)
    model.lm_head.float()
    assert v1.model_dtype(model) == torch.bfloat16
    whole = build.add_adapters(model, ADAPTERS._replace(modules_to_save=["ln_f"]))
    assert v1.model_dtype(whole) == torch.bfloat16


def test_a_tower_is_built_alone(model):
    tower = v1.build_tower(model.config)
    tower.load_state_dict(v1.tower(model).state_dict())
    images = torch.rand(2, 3, v1.image_size(model.config), v1.image_size(model.config))
    assert torch.equal(tower.eval()(images), v1.tower(model.eval())(images))
    package = Path(inspect.getfile(type(model))).parent
    assert Path(inspect.getfile(type(tower))) in v1.tower_sources()
    assert all(path.parent == package and path.is_file() for path in v1.tower_sources())


def test_image_facts_are_those_of_the_tokenizer(make_checkpoint):
    config, tokenizer = loading.load_config(make_checkpoint()), loading.load_tokenizer(make_checkpoint())
    ids = tokenizer("<img>a.png</img>").input_ids
    assert ids[0] == v1.image_start_id(config) and len(ids) == v1.tokens_per_image(config)
    assert (v1.image_size(config), v1.tokens_per_image(QWenConfig())) == (64, 258)
    assert v1.vision_settings(config) == {"visual": config.to_dict()["visual"]}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"model_type": "qwen"}, "type qwen without a vision tower;"),
        ({"model_type": "qwen2_vl", "visual": {}}, "type qwen2_vl;"),
        ({}, "type unknown without a vision tower;"),
    ],
)
def test_other_families_are_told_apart(settings, kind):
    assert not v1.is_family(settings) and v1.is_family(QWenConfig().to_dict())
    v1.check_family("model", QWenConfig().to_dict())
    with pytest.raises(ValueError, match=f"^model: a checkpoint of {kind}"):
        v1.check_family("model", settings)


@pytest.mark.parametrize(
    ("settings", "is_chat"),
    [({"chat_format": "chatml"}, True), ({"chat_format": "raw"}, False), ({"chat_format": None}, False), ({}, True)],
)
def test_chat_models_and_base_models(settings, is_chat):
    """Check the one rule of training, evaluation and chat; without a mark a model counts as a chat model."""
    assert v1.is_chat(settings) is is_chat
    assert v1.is_marked(settings) is bool(settings)
    generation_config = GenerationConfig(**settings)
    v1.mark_as_chat(generation_config)
    assert v1.is_chat(generation_config.to_dict())
