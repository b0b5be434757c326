"""The report of scripts/benchmark_training.py: Markdown tables and charts."""

import torch
from training_ways import BATCH

from qwen_vl.terminal import markdown_table
from qwen_vl.training.monitor import charts


def table(head, rows):
    """Return a Markdown table and an empty line."""
    return [markdown_table(head, rows), ""]


def svg(results):
    """Return an SVG file with a panel for each of throughput, memory and start that was measured."""
    gains, peaks, lines = {}, {}, {}
    for size, method, length, *_, ratio in results["throughput"]:
        gains.setdefault(f"{size} {length:,}", {})[method] = ratio
    for size, method, *mib in results["memory"]:
        peaks[f"{size} {method}"] = dict(zip(("original's way", "ours", "before a step"), mib, strict=True))
    for count, tokenized, cached, *_ in results["start"]:
        lines.setdefault("read and tokenize", []).append((count, tokenized))
        lines.setdefault("from the cache", []).append((count, cached))
    panels = (
        gains and charts.bars("Tokens a second, times those of the original's way, by length", gains),
        peaks and charts.bars("Peak memory, MiB", peaks),
        charts.curves("Start, seconds, by samples", lines, from_zero=False),
    )
    return charts.sheet([panel for panel in panels if panel], columns=len(panels))


def markdown(results, args):
    """Return the report as Markdown."""
    gain, reached, wanted = results["cache"]
    throughput = [[*row[:3], f"{row[3]:,.0f}", f"{row[4]:,.0f}", f"{row[5]:.1f}x"] for row in results["throughput"]]
    memory = [
        [
            size,
            method,
            *(f"{mib:,.0f}" for mib in (reference, ours)),
            f"{reference / ours:.1f}x",
            f"{before:,.0f}",
            f"{(reference - before) / max(ours - before, 1):.1f}x",
        ]
        for size, method, reference, ours, before in results["memory"]
    ]
    overhead = [[size, f"{added:+.1%}", f"{share:.0%}"] for size, added, share in results["overhead"]]
    starts = [[f"{row[0]:,}", f"{row[1]:.2f}", f"{row[2]:.2f}", f"{row[3]:.1f}"] for row in results["start"]]
    return "\n".join([
        f"Measured on {torch.get_num_threads()} CPU threads in float32, {args.samples} conversations with an image "
        f"each; ways in turn, medians of {args.rounds} rounds.\n",
        f"Useful tokens a second; the original's way takes batches of {BATCH} and pads them to the length.\n",
        *table(["model", "method", "length", "original's way", "ours", "ratio"], throughput),
        f"Peak memory in MiB at length {args.length}, batch {BATCH}, each in a process of its own.\n",
        *table(["model", "method", "original's way", "ours", "ratio", "before a step", "ratio above that"], memory),
        *(
            f"Not measured: {size} at {length}, where the original's way takes {gib} GiB, more than is free here.\n"
            for size, length, gib in results["left out"]
        ),
        f"What the trainer adds to a bare loop over the same rows, {BATCH} of 2048 tokens to a step; the loop's share "
        "of this machine's peak.\n",
        *table(["model", "trainer adds", "MFU"], overhead),
        f"Second epoch from the vision cache: {gain:.2f}x the tokens a second (LoRA; the tower takes {reached:.2f} "
        f"times the operations of the decoder, {wanted:.2f} in the published model at 384 tokens).\n",
        "Start, and the memory that the samples take when they are opened from the cache.\n",
        *table(["samples", "read and tokenize, s", "from the cache, s", "MiB"], starts),
    ])  # fmt: skip
