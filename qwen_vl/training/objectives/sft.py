"""The SFT loss, reduced from the loss of each target: weighted samples, and a loss for each source."""

from collections.abc import Callable

import torch

from qwen_vl.training.monitor.throughput import SourceMeter

DETAILS = ("loss_weights", "sources")  # keys of a batch for the loss, which the model does not take


def reduced(
    losses: torch.Tensor,
    index: torch.Tensor,
    details: dict[str, torch.Tensor],
    *,
    num_items: torch.Tensor | int | None = None,
    meter: SourceMeter | None = None,
) -> torch.Tensor:
    """Return the loss of a batch: the weighted sum of its targets' losses, divided by `num_items` or by their weights.

    losses: [targets] in reading order, from a call with `per_target_loss`. index: `target_index` of the batch. details:
    {"loss_weights": [batch, length], "sources": [batch, length], -1 in padding}, both optional. meter: sums the losses
    of each source.
    """
    if meter and "sources" in details:
        meter.add(details["sources"], index, losses.detach())
    count: torch.Tensor | int = losses.numel()
    if "loss_weights" in details:
        weights = details["loss_weights"].flatten()[index + 1]
        losses, count = losses * weights, weights.sum()
    return losses.sum() / (count if num_items is None else num_items)


def extra_weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the weights of a batch's targets minus their number, as a float tensor."""
    if "loss_weights" not in batch:
        return torch.tensor(0.0)
    return (batch["loss_weights"] - 1).flatten()[batch["target_index"] + 1].sum()


class HeldOutLoss:
    """The mean loss over all targets of evaluation data, the same for any batch size and number of ranks.

    gather: joins the tensors of all ranks, without the rows that fill up the last batch.
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
