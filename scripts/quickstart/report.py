"""The quickstart's report: accuracy of each stage, loss curves and answers, as Markdown with images and as JSON."""

import json
import textwrap
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from qwen_vl.evaluation.metrics import find_boxes, iou
from qwen_vl.model.box_drawing_qwen import draw_boxes, load_font
from qwen_vl.terminal import markdown_table
from qwen_vl.training.monitor import charts

SHOWN_SIDE = 384  # pixels of a drawn image's longer side; small images are enlarged, so labels are readable
TITLE_HEIGHT, MARGIN = 40, 8  # pixels, of each drawn image
COLUMNS = 4
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
    """Write report.md, report.json, loss.svg and answers.png into `folder`; return the path of report.md.

    facts: {name: text}, listed first. scores: {stage: {group: Score}}, stages in the order of the table's columns.
    curves: {name: [(step, loss), ..]}. examples: list of Example; those with a box in the last stage's prediction
    are drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", "\n".join(f"- {name}: {text}" for name, text in facts.items())]
    parts += ["## Accuracy on held-out images", accuracy_table(scores)]
    if any(curves.values()):
        (folder / "loss.svg").write_text(loss_svg(curves), encoding="utf-8")
        parts += ["## Training loss", "![training loss](loss.svg)"]
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


def loss_svg(curves):
    """Return an SVG file with a panel of loss over steps for each curve that has points."""
    panels = (
        charts.curves(textwrap.shorten(name, 40, placeholder=" .."), {"loss": points}, from_zero=False)
        for name, points in curves.items()
    )
    return charts.sheet([panel for panel in panels if panel], columns=COLUMNS)


def draw_answers(examples, path):
    """Write an image of the examples with the boxes of the last stage's predictions."""
    font = load_font(TITLE_HEIGHT // 2)
    width, height = SHOWN_SIDE + MARGIN, SHOWN_SIDE + TITLE_HEIGHT
    lines, columns = -(-len(examples) // COLUMNS), min(COLUMNS, len(examples))
    sheet = Image.new("RGB", (width * columns + MARGIN, height * lines + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, example in enumerate(examples):
        left, top = MARGIN + width * (index % columns), height * (index // columns)
        prediction, right = find_boxes(_last(example)), find_boxes(example.answer)
        label = _last(example).partition("<ref>")[2].partition("</ref>")[0]
        boxes = [{"box": box, "ref": label} for box in prediction]
        image = draw_boxes(scaled(example.image), boxes)
        sheet.paste(image, (left, top + TITLE_HEIGHT))
        if right:
            title = f"IoU {iou(prediction[0], right[0]):.2f}"
            middle = left + image.width / 2, top + TITLE_HEIGHT / 2
            draw.text(middle, title, fill="black", font=font, anchor="mm")
    sheet.save(path)


def _last(example):
    return list(example.predictions.values())[-1] if example.predictions else ""


def scaled(image):
    """Return the image with SHOWN_SIDE as its longer side; a smaller one gets larger pixels."""
    factor = SHOWN_SIDE / max(image.size)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BICUBIC)


def _code(text):
    """Return a text for a Markdown table cell: printable, on one line, cut if long."""
    text = "".join(c for c in " ".join(text.split()) if c.isprintable()).replace("`", "'")
    text = text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + ".."
    return f"`{text}`" if text else ""
