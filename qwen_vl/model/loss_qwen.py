"""Cross-entropy in chunks, to save memory in training; generation does not use it.

The logits of all targets never exist at once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**29  # of float32 logits; larger chunks are not faster
BLOCK_BYTES = 2**23  # of logits that are processed at a time: as much as a CPU's caches hold


def target_index(labels: torch.Tensor) -> torch.Tensor:
    """Return the index [targets], in flattened `labels` [batch, length], of the token before each target."""
    return (F.pad(labels[:, 1:], (0, 1), value=-100) != -100).flatten().nonzero()[:, 0]


def target_losses(lm_head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, *, vocab_size: int) -> torch.Tensor:
    """Return cross-entropies [targets], float32, of the logits that `lm_head` gives for `hidden` [targets, hidden].

    Up to CHUNK_BYTES of logits are computed at once and kept for the backward pass. More are computed chunk by chunk,
    and again in the backward pass, so memory does not grow with the number of targets.
    `lm_head` is called as a module, so adapters, trained copies and weights that are gathered for a call all work.
    """
    count = -(-len(targets) * vocab_size * 4 // CHUNK_BYTES)
    if is_partitioned(lm_head):  # every rank must call it equally often, because each call gathers its weights from all
        largest = torch.tensor(count, device=targets.device)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        count = int(largest)
    if count <= 1:
        return cross_entropies(lm_head, hidden, targets)
    losses = []
    for states, labels in zip(hidden.tensor_split(count), targets.tensor_split(count), strict=True):
        if torch.is_grad_enabled():
            losses.append(checkpoint(cross_entropies, lm_head, states, labels, use_reentrant=False))
        else:
            losses.append(cross_entropies(lm_head, states, labels))
    return torch.cat(losses)


def cross_entropies(lm_head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropies [targets], float32, of one chunk."""
    return CrossEntropy.apply(lm_head(hidden).float(), targets)


class CrossEntropy(torch.autograd.Function):
    """F.cross_entropy of each row, whose backward pass overwrites the logits with their gradient.

    Logits [targets, vocabulary] in float32 exist once: neither a log-softmax nor a separate gradient is stored. A
    second backward pass raises RuntimeError.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, targets)
        losses = [F.cross_entropy(block, labels, reduction="none") for block, labels in blocks(logits, targets)]
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets = ctx.saved_tensors
        for block, labels, scale in blocks(logits, targets, grad):
            probabilities = torch.softmax(block, dim=-1)
            probabilities.scatter_add_(1, labels[:, None], -torch.ones_like(scale)[:, None])
            torch.mul(probabilities, scale[:, None], out=block)
        return logits, None


def blocks(logits: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Return an iterator over blocks of rows: those of the logits, and the same rows of the other tensors."""
    rows = max(1, BLOCK_BYTES // (logits.shape[1] * logits.element_size()))
    return zip(logits.split(rows), *(other.split(rows) for other in others), strict=True)


def is_partitioned(lm_head: nn.Module) -> bool:
    """Return whether ZeRO-3 divides the weights among ranks."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and any(hasattr(parameter, "ds_id") for parameter in lm_head.parameters())
    )
