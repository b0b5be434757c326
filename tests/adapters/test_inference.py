"""A model folder or an adapter, opened to answer."""

import pytest
import torch

from qwen_vl.adapters import inference
from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder

IDS = torch.arange(20)[None]


@torch.no_grad()
def test_a_model_and_an_adapter_are_opened_in_evaluation_mode(make_adapter, make_checkpoint):
    plain, adapted = loading.load_model(make_checkpoint()).eval(), make_adapter()
    for path, expected in ((ModelFolder.open(make_checkpoint()), plain), (adapted, load_adapted(adapted)[0].eval())):
        model, tokenizer = inference.load(path, device="cpu")
        assert not model.training and tokenizer.image_span_tokens == 16
        assert model(IDS).logits.equal(expected(IDS).logits)
    assert not load_adapted(adapted)[0].eval()(IDS).logits.equal(plain(IDS).logits)
    assert inference.load(make_checkpoint(), device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16


def test_the_device_is_checked_before_anything_is_read():
    with pytest.raises(ValueError, match=r"device 'nonsense' cannot be used here .*; use (cuda or )?cpu"):
        inference.load("no such folder", device="nonsense")
    assert inference.usable_device("cpu") == torch.device("cpu")
