"""The loss token by token: for samples that weigh more than others, and for what each source of the data costs."""

from functools import partial

import torch
from torch.nn import functional as F

from qwen_vl.data.chatml import IGNORE_INDEX

DETAILS = ("loss_weights", "sources")  # what a batch may hold for the loss, and not for the model


def loss_function(details, meter=None):
    """A `compute_loss_func` for the Trainer that obeys the `details` of a batch, or None where it has none.

    details: {"loss_weights": [batch, length] of each token, "sources": [batch, length], -1 in padding}, both optional.
    Without weights the loss is the model's own. meter: a SourceMeter that is told the loss of each source.
    """
    return partial(_loss, details=details, meter=meter) if details else None


def _loss(outputs, labels, num_items_in_batch=None, *, details, meter):
    losses, is_target = token_losses(outputs.logits, labels)
    if meter and "sources" in details:
        meter.add(details["sources"], is_target, losses.detach())
    count = torch.tensor(losses.numel(), device=losses.device)
    if "loss_weights" in details:
        weights = details["loss_weights"][:, 1:][is_target]
        losses, count = losses * weights, weights.sum()
    return losses.sum() / (count if num_items_in_batch is None else num_items_in_batch)


def token_losses(logits, labels):
    """(losses, is_target): the cross-entropy of each target, [targets], and where these stand, [batch, length - 1].

    logits: [batch, length, vocabulary], labels: [batch, length]; the token before a target predicts it.
    """
    is_target = labels[:, 1:] != IGNORE_INDEX
    losses = F.cross_entropy(logits[:, :-1][is_target].float(), labels[:, 1:][is_target], reduction="none")
    return losses, is_target


def extra_weight(batch):
    """By how much the weights of a batch's targets exceed their number; a float tensor."""
    if "loss_weights" not in batch:
        return torch.tensor(0.0)
    return (batch["loss_weights"] - 1)[:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX].sum()
