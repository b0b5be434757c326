"""The quickstart's evaluation: the model of each stage answers the held-out questions.

`python scripts/quickstart/evaluate.py TEST.json REPORT --stage NAME=MODEL .. [--curve NAME=TRAINING_OUTPUT ..]`
writes the folder REPORT and prints the accuracy table.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import report
import torch

from qwen_vl.cli.run import run
from qwen_vl.evaluation import suite
from qwen_vl.evaluation.answering import LocalModel
from qwen_vl.evaluation.metrics.own_data import OWN_DATA
from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.records import Answer

BATCH_SIZE = 64
SHOWN_BOXES = 8
SHOWN_OTHERS = 2  # of each other task and language
MEASURES = {"first_at_0.5": "IoU >= 0.5", "agree": "exact match"}  # figure of a category: its name in the report


def read(path):
    """The test file as a task of `qwen-vl evaluate --data`; ValueError if its records have no categories."""
    (task,) = suite.tasks_of(suite.Request(data=(str(path),)))
    without = [record.id for record in task.records if "category" not in record.fields]
    if without:
        raise ValueError(f"{path}: {without[0]}: has no category; make the file with scripts/quickstart/make_data.py")
    return task


def group_of(record):
    """The task and language of a record of `make_data.build`: "box-zh"."""
    return record.fields["category"]


def score(records, predictions):
    """{group: Score} of predictions for the records, as `qwen-vl evaluate` gives them: boxes by IoU, all else equal."""
    pairs = [Pair(record, Answer(record.id, "", text)) for record, text in zip(records, predictions, strict=True)]
    figures = OWN_DATA.score(pairs).figures
    scores = {}
    for group in dict.fromkeys(map(group_of, records)):
        (name,) = (name for name in MEASURES if f"category/{group} {name}" in figures)
        figure = figures[f"category/{group} {name}"]
        scores[group] = report.Score(figure.value / 100, figure.count, MEASURES[name])
    return scores


def answers_of(folder, task):
    """The answers of the model in a checkpoint folder; progress goes to stderr."""
    prompts = task.prompts()
    answers = {}

    def keep(batch):
        for index, said in batch:
            if said.error:
                raise ValueError(f"{task.records[index].id}: {said.error}")
            answers[index] = said.text
        end = "\n" if len(answers) == len(prompts) else ""
        print(f"\r{folder}: {len(answers)}/{len(prompts)} answers", end=end, file=sys.stderr, flush=True)

    LocalModel.load(folder).answer(prompts, task.benchmark.decoding, batch_size=BATCH_SIZE, on_batch=keep)
    return [answers[index] for index in range(len(prompts))]


def choose(records, predictions):
    """The first examples of each group, boxes before the rest: list of report.Example."""
    shown, counts = [], {}
    for number, record in enumerate(records):
        group = group_of(record)
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= (SHOWN_BOXES // 2 if group.startswith("box") else SHOWN_OTHERS):
            shown.append((not group.startswith("box"), number))
    examples = []
    for _, number in sorted(shown):
        record = records[number]
        said = {stage: answers[number] for stage, answers in predictions.items()}
        examples.append(report.Example(record.question, record.answers[0], said, record.images[0].open()))
    return examples


def losses(output_dir):
    """Return ([(step, loss), ..], steps, seconds) of a training from trainer_state.json in its output folder."""
    history = json.loads((Path(output_dir) / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    seconds = sum(entry["train_runtime"] for entry in history if "train_runtime" in entry)
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry], history[-1]["step"], seconds


def main(argv=None):
    """Evaluate the models of the command line and write the report."""
    parser = argparse.ArgumentParser(prog="python scripts/quickstart/evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("test", help="conversation file of questions that no stage trained on")
    parser.add_argument("output", help="folder of the report")
    parser.add_argument("--stage", action="append", required=True, metavar="NAME=MODEL", help="a model to ask")
    parser.add_argument("--curve", action="append", default=[], metavar="NAME=OUTPUT", help="a training to plot")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    stages, trainings = named(args.stage), named(args.curve)
    task = read(args.test)
    records = task.records
    predictions = {stage: answers_of(folder, task) for stage, folder in stages.items()}
    scores = {stage: score(records, answers) for stage, answers in predictions.items()}
    curves = {name: losses(folder) for name, folder in trainings.items()}
    facts = {
        "questions": f"{len(records)}, one a conversation, about images that no stage has seen; greedy answers",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **{f"training, {name}": f"{steps} steps, {seconds:.0f} s" for name, (_, steps, seconds) in curves.items()},
    }
    path = report.write(
        args.output,
        title="Quickstart: a tiny Qwen-VL learns to see",
        facts=facts,
        scores=scores,
        curves={name: points for name, (points, *_) in curves.items()},
        examples=choose(records, predictions),
    )
    print(report.accuracy_table(scores))
    print(f"report: {path}")


def named(pairs):
    """Return {name: value} of ["name=value", ..]. Raise ValueError if a name is missing."""
    split = [pair.partition("=") for pair in pairs]
    if not all(name and value for name, _, value in split):
        raise ValueError(f"{' '.join(pairs)}: give each as NAME=FOLDER")
    return {name: value for name, _, value in split}


if __name__ == "__main__":
    run(main)
