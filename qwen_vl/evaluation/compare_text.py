"""A comparison of two runs for people: lines for a terminal, and a Markdown document with the changed records."""

from collections.abc import Sequence
from pathlib import Path

from qwen_vl.evaluation import results
from qwen_vl.evaluation.compare import Comparison
from qwen_vl.evaluation.safe_text import for_markdown, shown
from qwen_vl.evaluation.scored_runs import number
from qwen_vl.files import whole_file
from qwen_vl.terminal import markdown_table, text_table

NAME = "compare"
MAX_CHANGES = 100  # of a run in the Markdown document; the JSON file has all
MAX_TEXT = 300  # characters of a question or an answer in it
HEAD = ("run", "compared", "records", "A", "B", "B - A", "95% interval", "better", "worse", "same", "McNemar p")


def lines(comparisons: Sequence[Comparison], notes: Sequence[str]) -> list[str]:
    """Return the comparisons for a terminal: a table, then notes."""
    found = text_table([HEAD, *(tuple(map(shown, row(one))) for one in comparisons)])
    found += [f"{one.run}: {shown(note)}" for one in comparisons for note in notes_of(one)]
    return [*found, *(shown(note) for note in notes)]


def row(one: Comparison) -> tuple[str, ...]:
    """Return the cells of one comparison, as HEAD names them."""
    difference = number(one.difference, one.unit, signed=True)
    reach = ""
    if one.low is not None and one.high is not None:
        reach = f"{number(one.low, one.unit, signed=True)} to {number(one.high, one.unit, signed=True)}"
    values = (f"{one.num_records:,}", number(one.value_a, one.unit), number(one.value_b, one.unit), difference, reach)
    counts = tuple(f"{count:,}" for count in (one.num_better, one.num_worse, one.num_same))
    return (one.run, one.compared, *values, *counts, "" if one.p_value is None else f"{one.p_value:.3g}")


def notes_of(one: Comparison) -> list[str]:
    """Return what a reader of a comparison must know."""
    subset = ["a random subset (--limit), not the whole benchmark"] if one.is_subset else []
    return [*subset, *one.notes]


def write(folder: Path, a: str, b: str, comparisons: Sequence[Comparison], notes: Sequence[str]) -> list[Path]:
    """Write compare.md and compare.json into a folder; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{NAME}.md", folder / f"{NAME}.json"]
    with whole_file(paths[0]) as file:
        file.write(to_markdown(a, b, comparisons, notes).encode("utf-8"))
    results.write_json(paths[1], {"a": a, "b": b, "notes": list(notes), "runs": [one.to_dict() for one in comparisons]})
    return paths


def to_markdown(a: str, b: str, comparisons: Sequence[Comparison], notes: Sequence[str]) -> str:
    """Return the comparisons as Markdown, with the records that changed."""
    table = markdown_table(HEAD, [tuple(map(for_markdown, row(one))) for one in comparisons])
    found = ["# Comparison", "", f"A: {for_markdown(a)}", "", f"B: {for_markdown(b)}", "", table, ""]
    found += [f"- {for_markdown(one.run)}: {for_markdown(note)}" for one in comparisons for note in notes_of(one)]
    found += [f"- {for_markdown(note)}" for note in notes]
    for one in comparisons:
        found += ["", f"## {for_markdown(one.run)}", "", f"{len(one.changes):,} records changed.", ""]
        cells = [
            (
                *(for_markdown(text, MAX_TEXT) for text in (change.id, change.question)),
                *("" if text is None else for_markdown(text, MAX_TEXT) for text in (change.before, change.after)),
                f"{change.score_before:.4g}",
                f"{change.score_after:.4g}",
            )
            for change in one.changes[:MAX_CHANGES]
        ]
        if cells:
            found.append(markdown_table(("id", "question", "A", "B", "score A", "score B"), cells))
        if len(one.changes) > MAX_CHANGES:
            found += ["", f"{len(one.changes) - MAX_CHANGES:,} more are in {NAME}.json."]
    return "\n".join(found) + "\n"
