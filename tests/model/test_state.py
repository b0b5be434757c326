"""Digests of a model: they change with everything that changes its results, and with nothing else."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qwen_vl.model.state_qwen import settings_digest, weights_digest


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).eval()
    model.config = SimpleNamespace(seq_length=64)
    return model


def digests(model):
    return settings_digest(model), weights_digest(model)


CHANGES = {  # change of a model: (whether its settings differ, whether its weights do)
    "no change": (lambda model: model(torch.ones(2, 3)), (False, False)),
    "config": (lambda model: setattr(model.config, "seq_length", 65), (True, False)),
    "plain attribute": (lambda model: setattr(model[0], "scaling", 2.0), (True, False)),
    "training mode": (lambda model: model[1].train(), (True, False)),
    "hook": (lambda model: model[0].register_forward_hook(lambda *_: None), (True, False)),
    "dtype": (lambda model: model.half(), (True, True)),
    "optimizer step": (lambda model: model[0].weight.detach().add_(1), (True, True)),
    "behind autograd": (lambda model: model[0].weight.data.add_(1), (False, True)),
    "one bit of a buffer": (lambda model: model[1].running_var.data.view(torch.uint8)[3:4].add_(1), (False, True)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_digest_changes_with_what_it_covers(model, change):
    before, (act, differs) = digests(model), CHANGES[change]
    act(model)
    assert tuple(new != old for new, old in zip(digests(model), before, strict=True)) == differs
    assert digests(model) == digests(model)


def test_two_models_differ_and_hidden_weights_have_no_digest(model):
    other = copy.deepcopy(model)
    assert settings_digest(other) != settings_digest(model) and weights_digest(other) == weights_digest(model)
    other[0].weight.ds_id = 0
    assert weights_digest(other) is None
