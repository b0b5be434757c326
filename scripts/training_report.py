"""The report of scripts/benchmark_training.py: Markdown tables and a figure."""

import torch
from training_ways import BATCH

from qwen_vl.terminal import markdown_table


def table(head, rows):
    """Return a Markdown table and an empty line."""
    return [markdown_table(head, rows), ""]


def draw(results, path):
    """Draw throughput, memory and start into an image file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    names = [f"{size}\n{method}\n{length}" for size, method, length, *_ in results["throughput"]]
    left.bar(names, [row[-1] for row in results["throughput"]], color="#1f6fb2")
    left.set(title="tokens/s, times the original's way")
    left.tick_params(axis="x", labelsize=6.5)
    names = [f"{size} {method}" for size, method, *_ in results["memory"]]
    for offset, (column, label) in enumerate(((2, "original's way"), (3, "ours"), (4, "before a step"))):
        places = [index + 0.27 * (offset - 1) for index in range(len(names))]
        middle.bar(places, [row[column] for row in results["memory"]], width=0.25, label=label)
    middle.set_xticks(range(len(names)), names, fontsize=8)
    middle.set(title="peak memory, MiB", ylim=(0, 1.35 * max(row[2] for row in results["memory"])))
    middle.legend(fontsize=8, loc="upper center")
    counts = [row[0] for row in results["start"]]
    right.loglog(counts, [row[1] for row in results["start"]], "o-", label="read and tokenize, s")
    right.loglog(counts, [row[2] for row in results["start"]], "o-", label="from the cache, s")
    right.set(title="start, by samples")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


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
