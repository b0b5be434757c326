"""The quickstart's report: accuracy of each stage, loss curves and answers, as Markdown with images and as JSON."""

import json
import math
import textwrap
from pathlib import Path
from typing import NamedTuple

from qwen_vl.evaluation.metrics import find_boxes, iou
from qwen_vl.model.box_drawing_qwen import draw_boxes
from qwen_vl.terminal import markdown_table

SHOWN_SIDE = 384  # pixels of a drawn image's longer side; small images are enlarged, so labels are readable
COLUMNS = 4
FEW_POINTS = 20  # of a curve with few points, which are drawn as dots
LONGEST_CELL = 100  # characters of an answer in a table; an untrained model may generate anything


class Score(NamedTuple):
    """The share of `count` answers that are correct by `metric`."""

    share: float
    count: int
    metric: str


class Example(NamedTuple):
    """A question with its correct answer and the prediction of each stage, {stage: prediction}; image: a PIL image."""

    question: str
    answer: str
    predictions: dict
    image: object


def write(folder, *, title, facts, scores, curves, examples):
    """Write report.md, report.json, loss.png and answers.png into `folder`; return the path of report.md.

    facts: {name: text}, listed first. scores: {stage: {group: Score}}, stages in the order of the table's columns.
    curves: {name: [(step, loss), ..]}. examples: list of Example; those with a box in the last stage's prediction
    are drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", "\n".join(f"- {name}: {text}" for name, text in facts.items())]
    parts += ["## Accuracy on held-out images", accuracy_table(scores)]
    if any(curves.values()):
        draw_curves(curves, folder / "loss.png")
        parts += ["## Training loss", "![training loss](loss.png)"]
    drawn = [example for example in examples if find_boxes(_last(example))]
    if drawn:
        draw_answers(drawn, folder / "answers.png")
        parts += ["## Boxes", "Drawn as answered; the title gives the IoU with the right box.", "![boxes](answers.png)"]
    if examples:
        parts += ["## Answers", answers_table(examples)]
    content = {
        "facts": facts,
        "scores": {stage: {group: s._asdict() for group, s in groups.items()} for stage, groups in scores.items()},
        "curves": curves,
        "examples": [{key: value for key, value in e._asdict().items() if key != "image"} for e in examples],
    }
    (folder / "report.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def accuracy_table(scores):
    """Return a Markdown table with a line for each group and a column for each stage."""
    stages = list(scores)
    groups = list(dict.fromkeys(group for stage in stages for group in scores[stage]))
    rows = []
    for group in groups:
        first = next(scores[stage][group] for stage in stages if group in scores[stage])
        cells = [f"{scores[stage][group].share:.1%}" if group in scores[stage] else "" for stage in stages]
        rows.append([group, first.metric, str(first.count), *cells])
    return markdown_table(["task", "metric", "questions", *stages], rows)


def answers_table(examples):
    """Return a Markdown table with a line for each question: the correct answer and those of the stages."""
    stages = list(dict.fromkeys(stage for example in examples for stage in example.predictions))
    rows = [[e.question, e.answer, *(e.predictions.get(stage, "") for stage in stages)] for e in examples]
    return markdown_table(["question", "right answer", *stages], [[_code(cell) for cell in row] for row in rows])


def draw_curves(curves, path):
    """Write an image with a panel of loss over steps for each curve that has points."""
    curves_figure(curves).savefig(path, dpi=110)


def curves_figure(curves: dict[str, list]):
    """Return the matplotlib figure of `draw_curves`; losses that are not finite are gaps."""
    curves = {name: points for name, points in curves.items() if points}
    figure, panels = _figure(-(-len(curves) // COLUMNS), min(COLUMNS, len(curves)), width=5, height=3.2)
    for panel in panels[len(curves) :]:
        panel.axis("off")
    for panel, (name, points) in zip(panels, curves.items(), strict=False):
        losses = [loss if math.isfinite(loss) else math.nan for _, loss in points]
        known = [loss for loss in losses if loss == loss] or [0.0]
        marker = "o" if len(known) <= FEW_POINTS else None
        panel.plot([step for step, _ in points], losses, linewidth=1.2, marker=marker, markersize=3)
        panel.set_title(textwrap.shorten(name, 40, placeholder=" .."))
        panel.set(xlabel="step", ylabel="loss")
        panel.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        if points[0][0] == points[-1][0]:
            panel.set_xlim(points[0][0] - 1, points[0][0] + 1)
        if min(known) > 0 and max(known) / min(known) >= 10_000:
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=min(0, *known) * 1.05, top=None if max(known) > 0 else 1)
        panel.grid(alpha=0.3)
    return figure


def draw_answers(examples, path):
    """Write an image of the examples with the boxes of the last stage's predictions."""
    lines = -(-len(examples) // COLUMNS)
    figure, panels = _figure(lines, min(COLUMNS, len(examples)), width=2.6, height=2.9)
    for panel in panels:
        panel.axis("off")
    for panel, example in zip(panels, examples, strict=False):
        prediction, right = find_boxes(_last(example)), find_boxes(example.answer)
        label = _last(example).partition("<ref>")[2].partition("</ref>")[0]
        image = example.image.resize(_enlarged(example.image.size), resample=0)
        panel.imshow(draw_boxes(image, [{"box": box, "ref": label} for box in prediction]))
        if right:
            panel.set_title(f"IoU {iou(prediction[0], right[0]):.2f}", fontsize=10)
    figure.savefig(path, dpi=110)


def _last(example):
    return list(example.predictions.values())[-1] if example.predictions else ""


def _enlarged(size):
    factor = max(SHOWN_SIDE / max(size), 1)
    return tuple(round(side * factor) for side in size)


def _figure(lines, columns, *, width, height):
    """Return a matplotlib figure that needs no screen, and its panels in reading order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # extra [demo]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def _code(text):
    """Return a text for a Markdown table cell: printable, on one line, cut if long."""
    text = "".join(c for c in " ".join(text.split()) if c.isprintable()).replace("`", "'")
    text = text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + ".."
    return f"`{text}`" if text else ""
