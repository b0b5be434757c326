"""The loop of greedy generation: the likeliest token of each row, until every row has ended."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from qwen_vl.model.logits_qwen import NOT_FINITE, LogitsError

from .passes import ROWS, Passes, Row, RowCache, up_to
from .records import Decoding

RUNNING, DAMAGED = 1, 2  # what a process says of its rows when several keep step


class Generated(NamedTuple):
    """The ids that a row got, without the one that ended it."""

    ids: list[int]
    has_ended: bool


def generate(
    passes: Passes, cache: RowCache, rows: Sequence[Row], decoding: Decoding, ends: Sequence[int]
) -> list[Generated]:
    """Return what the model says after each row; `cache` holds the prefixes of the rows.

    An end is banned in the first `min_new_tokens` steps. Rows that have ended leave the batch when half of them have.
    Raise LogitsError for logits that are not finite.
    """
    count = len(rows)
    rows = rows or [Row([0], 0)]  # a process without prompts keeps step
    said: list[list[int]] = [[] for _ in range(count)]
    at = [row.start + len(row.ids) for row in rows]  # position of each row's next token
    order, active = list(range(len(rows))), set(range(count))  # rows of the cache; those that have not ended
    ended: set[int] = set()
    scores = passes.read(cache, rows)[:, -1]
    for step in range(decoding.max_new_tokens):
        tokens, finite = choose(scores, [] if step >= decoding.min_new_tokens else ends)
        wrong = not all(fine for row, fine in zip(order, finite, strict=True) if row in active)
        for row, token in dict(zip(order, tokens, strict=True)).items() if not wrong else ():
            if row in active and token in ends:
                active.remove(row)
                ended.add(row)
            elif row in active:
                said[row].append(token)
        last = step + 1 == decoding.max_new_tokens
        state = passes.most(DAMAGED if wrong else RUNNING if active and not last else 0)
        if state == DAMAGED:
            raise LogitsError(NOT_FINITE.format(dtype=passes.model.dtype))
        if state == 0:
            break
        latest = dict(zip(order, tokens, strict=True))
        kept = kept_rows(order, active, passes.is_exact)
        if kept != order:
            cache.select([order.index(row) for row in kept])
            order = kept
        scores = passes.forward(cache, [Row([latest[row]], at[row] + step) for row in order])[:, -1]
    return [Generated(ids, row in ended) for row, ids in enumerate(said)]


def choose(scores: torch.Tensor, banned: Sequence[int]) -> tuple[list[int], list[bool]]:
    """Return the likeliest token of each row of logits [rows, vocabulary] but for `banned`; and which are finite."""
    scores = scores.float()
    finite = scores.amax(dim=-1).isfinite()  # the largest of any with NaN is NaN
    if banned:
        scores = scores.index_fill(1, torch.tensor(banned, device=scores.device), -float("inf"))
    both = torch.stack([scores.argmax(dim=-1), finite.long()]).tolist()  # one wait for the device
    return both[0], [bool(one) for one in both[1]]


def kept_rows(order: list[int], active: set[int], is_exact: bool) -> list[int]:
    """Return which rows the next pass reads: all, or without those that have ended if they are half of them.

    In float32 their number is a multiple of ROWS, for which some come again.
    """
    running = [row for row in order if row in active] or order[:1]
    running = list(dict.fromkeys(running))
    wanted = up_to(len(running), ROWS) if is_exact else len(running)
    if len(order) >= wanted and wanted > len(order) // 2 and (not is_exact or len(order) % ROWS == 0):
        return order
    return running + [running[0]] * (wanted - len(running))
