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


class SourceMeter:
    """Tokens, targets and summed loss of each source since the last `take`."""

    def __init__(self, names):
        self.names = list(names)
        self._sums = None  # [sources, 3]: tokens, targets, loss; on the device of the losses

    def add(self, sources, is_target, losses):
        """Count a batch in: `sources` [batch, length], the mask and the losses of `token_losses`."""
        if self._sums is None:
            self._sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=losses.device)
        tokens, targets = sources[sources >= 0], sources[:, 1:][is_target]
        self._sums[:, 0].index_add_(0, tokens, torch.ones_like(tokens, dtype=torch.float64))
        self._sums[:, 1].index_add_(0, targets, torch.ones_like(targets, dtype=torch.float64))
        self._sums[:, 2].index_add_(0, targets, losses.double())

    def take(self, reduce=None):
        """{"tokens/NAME", "loss/NAME"} of every source that occurred; then counting starts again.

        reduce: sums a tensor over all ranks; every rank then has to call this.
        """
        sums = torch.zeros(len(self.names), 3, dtype=torch.float64) if self._sums is None else self._sums
        sums, self._sums = (reduce(sums) if reduce else sums).tolist(), None
        logs = {}
        for name, (tokens, targets, loss) in zip(self.names, sums, strict=True):
            if tokens:
                logs[f"tokens/{name}"] = int(tokens)
            if targets:
                logs[f"loss/{name}"] = loss / targets
        return logs
