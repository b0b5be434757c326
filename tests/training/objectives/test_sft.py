"""Sample weights and the loss of each source, computed in the same forward pass as the loss."""

import pytest
import torch

from qwen_vl.checkpoint import loading
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import HOST_KEYS, ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.training.monitor.throughput import SourceMeter
from qwen_vl.training.objectives.sft import DETAILS, extra_weight, reduced


def talk(name, question, answer, **more):
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return {"id": name, "conversations": turns, **more}


LIGHT, HEAVY = talk("a", "hi", "hello"), talk("b", "1 + 1?", "2, I should think")


@pytest.fixture(scope="module")
def parts(make_checkpoint):
    """Return (model, collator of samples, encoder of records)."""
    folder = make_checkpoint()
    tokenizer = loading.load_tokenizer(folder)
    collate = ConversationCollator(tokenizer, 64)
    return (
        loading.load_model(folder),
        collate,
        lambda *records: list(ConversationDataset(records, tokenizer, EncodeOptions())),
    )


def loss_of(model, batch, meter=None, num_items=None):
    """Return the loss as the Trainer computes it."""
    details = {key: batch[key] for key in DETAILS if key in batch}
    inputs = {key: value for key, value in batch.items() if key not in (*DETAILS, *HOST_KEYS)}
    if not details:
        return model(**inputs, num_items_in_batch=num_items).loss
    losses = model(**inputs, per_target_loss=True).loss
    return reduced(losses, inputs["target_index"], details, num_items=num_items, meter=meter)


def gradients(model, batch):
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_of_each_target(parts):
    """Check its reading order, with and without logits of all positions, and that its mean is the loss."""
    model, collate, samples = parts
    inputs = {key: value for key, value in collate(samples(LIGHT, HEAVY)).items() if key not in HOST_KEYS}
    for is_training in (True, False):
        output = model.train(is_training)(**inputs, per_target_loss=True)
        logits, labels = model.eval()(**inputs | {"labels": None}).logits[:, :-1], inputs["labels"][:, 1:]
        every = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        assert output.logits is None and torch.allclose(output.loss, every[labels != -100], rtol=1e-5)
        assert output.loss.mean().item() == pytest.approx(model(**inputs).loss.item())


@pytest.mark.parametrize("packed", [False, True])
def test_a_weight_of_two_is_a_sample_twice(parts, packed):
    model, collate, samples = parts
    weighted, twice = samples(LIGHT, {**HEAVY, "weight": 2}), samples(LIGHT, HEAVY, HEAVY)
    batch = collate([weighted] if packed else weighted)
    loss, ours = gradients(model, batch)
    expected_loss, expected = gradients(model, collate(twice))
    assert loss == pytest.approx(expected_loss, rel=1e-6) and ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    num_targets = (collate(samples(HEAVY))["labels"][:, 1:] != -100).sum()
    assert extra_weight(batch) == num_targets
    assert extra_weight(collate(twice)) == 0 and not set(DETAILS) & set(collate(twice))


def test_each_source_has_its_own_loss(parts):
    """Check that the losses of sources in two batches equal those of each source alone; the total stays the same."""
    model, collate, samples = parts
    light, heavy = samples(LIGHT, HEAVY)
    meter = SourceMeter(["light", "heavy", "absent"])
    for _ in range(2):
        batch = collate([{**light, "source": 0}, {**heavy, "source": 1}])
        assert loss_of(model, batch, meter).item() == pytest.approx(loss_of(model, collate([light, heavy])).item())
        assert loss_of(model, batch, num_items=7).item() == pytest.approx(
            loss_of(model, collate([light, heavy]), num_items=7).item()
        )
    logs = meter.take()
    assert logs == {
        "tokens/light": 2 * len(light["input_ids"]),
        "loss/light": pytest.approx(loss_of(model, collate([light])).item(), rel=1e-5),
        "tokens/heavy": 2 * len(heavy["input_ids"]),
        "loss/heavy": pytest.approx(loss_of(model, collate([heavy])).item(), rel=1e-5),
    }
    assert meter.take(reduce=torch.clone) == {}
