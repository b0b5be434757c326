"""Several adapters on one model, of which one or none is active."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from qwen_vl.adapters.switching import AdapterSwitch
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder

IDS = torch.arange(20)[None]


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.fixture
def two(make_adapter):
    """Return the folders of two adapters with different weights on the same base."""
    first = make_adapter()
    second = first.with_name("second")
    shutil.copytree(first, second)
    file = second / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    return {"v1.0": first, "v2": second}


def test_each_adapter_answers_as_if_it_were_alone(two, make_checkpoint):
    base = make_checkpoint()
    model = loading.load_model(base)
    switch = AdapterSwitch(model, ModelFolder.open(base), two)
    alone = {name: logits(PeftModel.from_pretrained(loading.load_model(base), folder)) for name, folder in two.items()}
    alone[None] = logits(loading.load_model(base))
    assert len({tensor.sum().item() for tensor in alone.values()}) == 3
    for name in (None, "v2", "v1.0", None, "v1.0", "v2"):
        switch.use(name)
        assert switch.active == name and logits(model).equal(alone[name])
    with pytest.raises(KeyError):
        switch.use("v3")


def test_an_adapter_of_another_base_is_refused(two, make_checkpoint):
    record = json.loads((two["v2"] / "base.json").read_text())
    (two["v2"] / "base.json").write_text(json.dumps(record | {"fingerprint": "0" * 64}))
    folder = ModelFolder.open(make_checkpoint())
    with pytest.raises(ValueError, match=f"not the weights that {two['v2']} was trained on"):
        AdapterSwitch(loading.load_model(folder), folder, two)
    AdapterSwitch(loading.load_model(folder), folder, two, trust_base=True)


def test_an_adapter_of_other_shapes_is_one_line_with_its_first_tensor(two, make_checkpoint):
    file = two["v2"] / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor[..., :-1].contiguous() for name, tensor in tensors.items()}, file)
    model, base = loading.load_model(make_checkpoint()), ModelFolder.open(make_checkpoint())
    with pytest.raises(
        ValueError, match=r"does not fit the model: size mismatch for .*lora_A.*; give the base"
    ) as error:
        AdapterSwitch(model, base, two)
    assert "\n" not in str(error.value) and str(two["v2"]) in str(error.value)


def test_without_adapters_only_the_base_answers(make_checkpoint):
    switch = AdapterSwitch(loading.load_model(make_checkpoint()), ModelFolder.open(make_checkpoint()), {})
    switch.use(None)
    assert switch.adapted is None and switch.active is None
