"""The loss in chunks: equal to the loss of all logits, gradients included, in memory that does not grow."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from qwen_vl.checkpoint import loading
from qwen_vl.model import loss_qwen


def with_lora(model, **more):
    return get_peft_model(model, LoraConfig(target_modules=["c_attn", "w1"], **more))


KINDS = {
    "trained": lambda model: model,
    "frozen": lambda model: model.requires_grad_(False) and model.transformer.requires_grad_(True) and model,
    "lora": with_lora,
    "lora, lm_head whole": lambda model: with_lora(model, modules_to_save=["wte", "lm_head"]),
    "lora on lm_head": lambda model: get_peft_model(model, LoraConfig(target_modules=["c_attn", "lm_head"])),
}


@pytest.fixture(scope="module")
def plain(make_checkpoint):
    return loading.load_model(make_checkpoint()).train()


def batch(seed=0):
    """Return two rows of 24 ids, one in three of them a target."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 900, (2, 24), generator=generator)
    return ids, ids.where(torch.rand(2, 24, generator=generator) < 0.3, -100)


def reference(model, ids, labels):
    """Return the loss of each target, from the logits of every position."""
    logits = model.eval()(input_ids=ids).logits[:, :-1].float()
    model.train()
    every = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
    return every[labels[:, 1:] != -100]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets_a_chunk", [1, 5, 1000])
def test_loss_and_gradients_are_those_of_all_logits(plain, monkeypatch, kind, targets_a_chunk):
    model, (ids, labels) = KINDS[kind](copy.deepcopy(plain)), batch()
    monkeypatch.setattr(loss_qwen, "CHUNK_BYTES", 4 * model.config.vocab_size * targets_a_chunk)
    weights = torch.linspace(0.5, 2, int((labels[:, 1:] != -100).sum()))
    for of_batch, of_targets in (
        (lambda: model(input_ids=ids, labels=labels).loss, lambda losses: losses.mean()),
        (lambda: model(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(7)).loss, lambda x: x.sum() / 7),
        (lambda: (model(input_ids=ids, labels=labels, per_target_loss=True).loss * weights).sum(),
         lambda losses: (losses * weights).sum()),
    ):  # fmt: skip
        loss, expected_loss = of_batch(), of_targets(reference(model, ids, labels))
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
        ours, expected = gradients(model, loss), gradients(model, expected_loss)
        assert ours.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name
            assert (ours[name] - gradient).norm() <= 2e-6 * gradient.norm() + 1e-9, name


def test_accumulation_and_autocast(plain, monkeypatch):
    """Check that micro-batches with a common number of targets add up to the batch, also under autocast."""
    ids, labels = batch(1)
    monkeypatch.setattr(loss_qwen, "CHUNK_BYTES", 4 * plain.config.vocab_size * 3)
    count = (labels[:, 1:] != -100).sum()
    whole = gradients(plain, plain(input_ids=ids, labels=labels).loss)
    parts = [
        plain(input_ids=i[None], labels=t[None], num_items_in_batch=count).loss
        for i, t in zip(ids, labels, strict=True)
    ]
    split = gradients(plain, sum(parts))
    assert all((split[name] - whole[name]).norm() <= 2e-6 * whole[name].norm() + 1e-9 for name in whole)
    with torch.autocast("cpu", torch.bfloat16):
        chunked = gradients(plain, plain(input_ids=ids, labels=labels).loss)
        monkeypatch.setattr(loss_qwen, "CHUNK_BYTES", 2**30)
        at_once = gradients(plain, plain(input_ids=ids, labels=labels).loss)
    for name in at_once:
        assert (chunked[name] - at_once[name]).norm() <= 0.02 * at_once[name].norm() + 1e-6, name


def test_the_backward_pass_keeps_no_logits_beyond_a_chunk(monkeypatch):
    """Count what autograd keeps, and check that positions without a target never reach lm_head."""
    vocab, chunk = 50, 16
    monkeypatch.setattr(loss_qwen, "CHUNK_BYTES", 4 * vocab * chunk)
    head, kept = nn.Linear(8, vocab, bias=False), {}
    for number in (chunk, 2 * chunk, 16 * chunk):
        hidden, saved = torch.rand(number, 8, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            targets = torch.zeros(number, dtype=torch.long)
            loss = loss_qwen.target_losses(head, hidden, targets, vocab_size=vocab)
        loss.sum().backward()
        assert hidden.grad.abs().sum() > 0
        kept[number] = sum(size for size in saved if size >= vocab * chunk)
    assert kept[chunk] >= vocab * chunk and kept[2 * chunk] == kept[16 * chunk] == 0
