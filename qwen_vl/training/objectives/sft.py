"""The loss from the losses of its targets: for samples that weigh more than others, and for sources told apart."""

from collections.abc import Callable

import torch

from qwen_vl.training.monitor.throughput import SourceMeter

DETAILS = ("loss_weights", "sources")  # what a batch may hold for the loss, and not for the model


def reduced(
    losses: torch.Tensor,
    index: torch.Tensor,
    details: dict[str, torch.Tensor],
    *,
    num_items: torch.Tensor | int | None = None,
    meter: SourceMeter | None = None,
) -> torch.Tensor:
    """Return the loss of a batch: the weighted sum of its targets' losses over `num_items`, or over their weights.

    losses: [targets] in reading order, from a call with `per_target_loss`. index: `target_index` of the batch. details:
    {"loss_weights": [batch, length], "sources": [batch, length], -1 in padding}, both optional. meter: adds
    up what the targets of each source cost.
    """
    if meter and "sources" in details:
        meter.add(details["sources"], index, losses.detach())
    count: torch.Tensor | int = losses.numel()
    if "loss_weights" in details:
        weights = details["loss_weights"].flatten()[index + 1]
        losses, count = losses * weights, weights.sum()
    return losses.sum() / (count if num_items is None else num_items)


def extra_weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return by how much the weights of a batch's targets exceed their number; a float tensor."""
    if "loss_weights" not in batch:
        return torch.tensor(0.0)
    return (batch["loss_weights"] - 1).flatten()[batch["target_index"] + 1].sum()


class HeldOutLoss:
    """The mean loss over all targets of evaluation data: the same for any batch size and any number of processes.

    gather: joins the tensors of all processes, without the rows that only fill up the last batch.
    """

    def __init__(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._gather = gather
        self._rows: list[torch.Tensor] = []  # of each batch [rows, 2]: weighted losses, weights

    def add(
        self, losses: torch.Tensor, index: torch.Tensor, labels: torch.Tensor, details: dict[str, torch.Tensor]
    ) -> None:
        """Add a batch; `labels` [batch, length], the rest as in `reduced`."""
        weights = torch.ones_like(losses)
        if "loss_weights" in details:
            weights = details["loss_weights"].flatten()[index + 1]
        row = index // labels.shape[1]
        sums = losses.new_zeros(len(labels), 2)  # of each row: weighted losses, weights
        sums = sums.index_add(0, row, torch.stack([losses * weights, weights], dim=1))
        self._rows.append(self._gather(sums))

    def take(self) -> float:
        """Return the mean since the last `take`."""
        rows, self._rows = torch.cat(self._rows).double(), []
        loss, weight = rows.sum(dim=0).tolist()
        return loss / weight
