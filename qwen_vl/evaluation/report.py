"""A table of all scores in a results folder."""

from pathlib import Path

from qwen_vl.evaluation import results
from qwen_vl.terminal import markdown_table


def write(results_dir: Path) -> list[Path]:
    """Write report.md of all scored runs below a results folder, and return what was written."""
    rows = []
    for file in sorted(results_dir.glob(f"*/*/{results.SCORES}")):
        scores = results.read_json(file)
        figure = scores["figures"].get(scores["headline"])
        value = "" if figure is None else f"{figure['value']:.2f}"
        marks = "subset " * scores["subset"] + "incomplete" * scores["incomplete"]
        rows.append((scores["model"], file.parent.name, scores["headline"], value, marks.strip()))
    path = results_dir / "report.md"
    path.write_text(markdown_table(("model", "run", "figure", "value", "marks"), rows) + "\n", encoding="utf-8")
    return [path]
