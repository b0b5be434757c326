"""Targets by name or word, and adapters, flags and base weights that do not fit each other."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import runs
from safetensors.torch import save_file

from qwen_vl.adapters import build, lora_targets
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading


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
    adapted = build.add_adapters(model, LoraOptions(r=4, alpha=8, dropout=0.0, targets=targets))
    found = {name.split(".lora_A")[0] for name, _ in adapted.named_modules() if name.endswith(".lora_A")}
    assert {name.removeprefix("base_model.model.transformer.") for name in found} == places


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
