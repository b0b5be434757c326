"""Trainable parameters: freezing, adapters and dtypes."""

import pytest
import torch
from peft.utils import get_peft_model_state_dict

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.training import tuning

ADAPTERS = LoraOptions(r=4, alpha=8, dropout=0.0)
TABLE = "visual.attn_pool.pos_embed"


@pytest.fixture
def model(make_checkpoint):
    return loading.load_model(make_checkpoint())


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("fix_vit", [True, False])
def test_full_training(model, fix_vit):
    names = trainable(tuning.freeze_for_full(model, fix_vit=fix_vit))
    everything = {name for name, _ in model.named_parameters()}
    frozen = {name for name in everything if ".visual." in name and ".attn_pool." not in name} if fix_vit else set()
    assert names == everything - frozen - {f"transformer.{TABLE}"}


def test_chat_and_base_models_differ_in_what_trains_whole(make_checkpoint):
    chat, base = (loading.load_model(make_checkpoint(chat_format)) for chat_format in ("chatml", "raw"))
    assert build.whole_modules(chat) is None
    assert build.whole_modules(base) == ["wte", "lm_head"]
    assert build.whole_modules(base, ["none"]) is None
    assert build.whole_modules(chat, ["ln_f"]) == ["ln_f"]


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_adapters_sit_on_the_decoder_and_biases_train_as_asked(model, bias):
    # Not the resampler's in_proj_bias, which PEFT would not save.
    every_bias = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    names = trainable(build.add_adapters(model, ADAPTERS._replace(bias=bias)))
    lora = {name for name in names if ".lora_" in name}
    assert len(lora) == 2 * 4 * 2 and all(".transformer.h." in name for name in lora)
    of_targets = {name for name in every_bias if "c_attn" in name}
    expected = {"none": set(), "all": every_bias, "lora_only": of_targets}[bias]
    assert {build.without_wrappers(name.replace(".base_layer", "")) for name in names - lora} == expected


@pytest.mark.parametrize(
    ("whole", "inside"),
    [
        (["visual", "wte"], (".visual.", ".wte.")),
        (["attn_pool"], (".attn_pool.",)),
        (["attn"], (".attn.",)),  # and not c_attn, which ends in the same letters
        (["resblocks"], (".resblocks.",)),  # a list of modules
        (["1"], (".h.1.", ".resblocks.1.")),  # and not ln_1
        (["visual.transformer"], (".visual.transformer.",)),
        (["transformer.wte", "lm_head"], (".wte.", "lm_head.")),
    ],
    ids=lambda value: "+".join(value),
)
def test_modules_to_save_train_whole_but_never_the_position_table(model, whole, inside):
    """Check that only modules with the name train whole, and that all that trains is saved."""
    expected = {name for name, _ in model.named_parameters() if any(part in name for part in inside)}
    adapted = build.add_adapters(model, ADAPTERS._replace(modules_to_save=whole))
    found = {build.without_wrappers(name) for name in trainable(adapted) if ".lora_" not in name}
    assert found == expected - {f"transformer.{TABLE}"}
    saved = {build.without_wrappers(name) for name in get_peft_model_state_dict(adapted) if ".lora_" not in name}
    assert saved == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules_to_save": ["visual", "attn_pool"]}, "transformer.visual.attn_pool lies in transformer.visual,"),
        ({"modules_to_save": ["h", "mlp.w1"]}, "transformer.h.0.mlp.w1 lies in transformer.h.0,"),
        ({"modules_to_save": ["transformer"]}, "transformer.visual.transformer lies in transformer,"),
        ({"modules_to_save": ["h"]}, "--lora_target_modules .*: all of them lie in what trains whole"),
        ({"targets": ["vision"], "modules_to_save": ["visual"]}, "--lora_target_modules vision: all of them lie in"),
        ({"modules_to_save": ["drop"]}, "--modules_to_save drop: matches nothing in the model"),  # without weights
    ],
    ids=str,
)
def test_modules_that_cannot_train_whole_as_asked_are_refused(model, changes, said):
    with pytest.raises(ValueError, match=said):
        build.add_adapters(model, ADAPTERS._replace(**changes))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"targets": ["c_attn", "q_proj"]}, "--lora_target_modules q_proj"),
        ({"targets": ["ln_1"]}, "--lora_target_modules ln_1"),
        ({"targets": ["attn"]}, "--lora_target_modules attn"),
        ({"modules_to_save": ["embed_tokens"]}, "--modules_to_save embed_tokens"),
    ],
)
def test_a_name_that_matches_nothing_is_an_error(model, changes, flag):
    with pytest.raises(ValueError, match=f"{flag}: matches nothing in the model"):
        build.add_adapters(model, ADAPTERS._replace(**changes))


def test_weights_that_train_are_kept_in_float32(make_checkpoint):
    model = loading.load_model(make_checkpoint("raw"), dtype=torch.bfloat16)
    adapted = tuning.train_in_float32(build.add_adapters(model, ADAPTERS._replace(modules_to_save=["wte"])))
    kept = {parameter.dtype for parameter in adapted.parameters() if parameter.requires_grad}
    assert kept == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}
