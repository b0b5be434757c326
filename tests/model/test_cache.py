"""The KV cache: equal to that of transformers, with fewer copies."""

import torch
from transformers.cache_utils import DynamicLayer

from qwen_vl.model import cache_qwen


def test_the_cache_equals_that_of_transformers_and_copies_nothing_for_a_new_token(monkeypatch):
    """Apply every operation of generation to layers that grow every 4 tokens."""
    monkeypatch.setattr(cache_qwen, "ROOM", 4)
    torch.manual_seed(0)
    ours, theirs = cache_qwen.GrowingLayer(), DynamicLayer()

    def add(rows, tokens):
        new = torch.randn(2, rows, 3, tokens, 5)
        for mine, plain in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(mine, plain) and ours.get_seq_length() == theirs.get_seq_length()
        return ours.keys.data_ptr()

    before = add(2, 5)
    assert add(2, 1) == before and add(2, 2) == before and add(2, 1) != before
    for operation, argument, rows in [
        ("reorder_cache", torch.tensor([1, 1]), 2),
        ("crop", -4, 2),
        ("batch_repeat_interleave", 2, 4),
        ("batch_select_indices", torch.tensor([3, 0, 1]), 3),
        ("reorder_cache", torch.tensor([2, 0, 1]), 3),
    ]:
        for layer in (ours, theirs):
            getattr(layer, operation)(argument)
        for tokens in (1, 1, 7):
            add(rows, tokens)
    for layer in (ours, theirs):
        layer.reset()
    add(1, 3)
    with torch.inference_mode():
        ours.reset(), theirs.reset(), add(1, 1)
    add(1, 1)  # tensors of inference mode cannot be written here


def test_a_backward_pass_over_cached_steps_keeps_what_it_needs(golden_model):
    ids = torch.tensor([[785, 786, 787, 788]])
    whole = golden_model(ids, use_cache=False).logits[:, -1, :9].sum()
    first = golden_model(ids[:, :2], use_cache=True)
    steps = golden_model(ids[:, 2:], past_key_values=first.past_key_values).logits[:, -1, :9].sum()
    weight = golden_model.transformer.h[0].attn.c_attn.weight
    one, other = (torch.autograd.grad(loss, weight)[0] for loss in (whole, steps))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
