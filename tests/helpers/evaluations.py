"""A benchmark of colored squares, and a model that answers it without any weights."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image

from qwen_vl.evaluation.answering import ModelIdentity, Said
from qwen_vl.evaluation.benchmarks.benchmark import Benchmark, DataFile
from qwen_vl.evaluation.metrics.result import Metric, Result, SampleScore
from qwen_vl.evaluation.records import Decoding, ImageSource, Ranking, Record
from qwen_vl.evaluation.statistics import mean_figure

COLORS = ("red", "green", "blue")
IDENTITY = ModelIdentity("fake", "/models/fake", "0123456789abcdef" * 4, "t" * 64, True, "model", "float32")


def png(color):
    """Return the bytes of a small image of one color."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(content, "PNG")
    return content.getvalue()


def write_data(folder, num_images=4, questions=3):
    """Write `squares.jsonl` and its images: `questions` records an image."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(num_images):
        (folder / f"{number}.png").write_bytes(png((number * 9 + 1, 40, 80)))
        for question in range(questions):
            answer = COLORS[(number + question) % 3]
            line = {"image": f"{number}.png", "id": f"{number}-{question}", "question": f"Q{question}?"}
            lines.append(json.dumps(line | {"answer": answer}))
    (folder / "squares.jsonl").write_text("\n".join(lines) + "\n")


def read_squares(files):
    """Return the records of a squares file."""
    path = Path(files["records"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Record(
            row["id"],
            row["question"],
            (ImageSource.from_file(path.parent / row["image"]),),
            (row["answer"],),
            COLORS,
        )
        for row in rows
    ]


def score(pairs):
    """Return the share of right answers; a choice counts as the text of its option."""
    samples = []
    for record, answer in pairs:
        said = record.options[answer.choice] if answer.text is None else answer.text
        samples.append(SampleScore(record.id, float(said in record.answers), said))
    scores, clusters = [sample.score for sample in samples], [pair.record.cluster for pair in pairs]
    figures = {"accuracy": mean_figure(scores, clusters), "accuracy as published": mean_figure([0.0] * len(pairs))}
    return Result("accuracy", figures, samples)


SQUARES = Benchmark(
    name="squares",
    title="Squares",
    files={"records": DataFile("squares.jsonl", "make it with a pencil")},
    reader=read_squares,
    template="vqa",
    decoding=Decoding(max_new_tokens=5),
    metric=Metric("exact match", score),
    size=12,
    published={"Qwen-VL": 50.0},
)
RANKED = replace(SQUARES, name="squares_ranked", decoding=Ranking())
MEAN = replace(SQUARES, name="squares_mean", files={}, parts=("squares", "squares_ranked"))


class FakeModel:
    """Answers with a color that follows from prompt and image bytes. It can die after some batches."""

    def __init__(self, identity=IDENTITY, dies_after=None):
        self.identity, self.dies_after, self.asked = identity, dies_after, []

    def answer(self, prompts, decoding, *, option_counts=(), batch_size, on_batch):
        order = sorted(range(len(prompts)), key=lambda index: hashlib.md5(prompts[index].text.encode()).hexdigest())
        for number, start in enumerate(range(0, len(order), batch_size)):
            if number == self.dies_after:
                raise KeyboardInterrupt
            rows = order[start : start + batch_size]
            self.asked += [prompts[row].text for row in rows]
            on_batch([(row, self.say(prompts[row], decoding)) for row in rows])

    def say(self, prompt, decoding):
        try:
            prompt.images[0].open()
        except ValueError as error:
            return Said(error=str(error), finish="error")
        content = f"{self.identity.fingerprint}{prompt.parts[1:]}{prompt.style}".encode() + prompt.images[0].read()
        choice = hashlib.md5(content).digest()[0] % 3
        if isinstance(decoding, Ranking):
            return Said(losses=tuple(float(n != choice) for n in range(3)), choice=choice, finish="rank")
        return Said(text=COLORS[choice], num_tokens=1)
