"""The quickstart's report: every stage's model answers the held-out questions.

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

from qwen_vl.checkpoint import loading
from qwen_vl.cli.run import run
from qwen_vl.data import conversations
from qwen_vl.evaluation import generation, metrics
from qwen_vl.model.image_loading_qwen import read_image

BATCH_SIZE = 64
MAX_NEW_TOKENS = 48  # a box with its phrase takes about 30
SHOWN_BOXES = 8
SHOWN_OTHERS = 2  # of each other task and language


def group_of(record):
    """The task and language of a record of `make_data.build`: "box-zh"."""
    return record["id"].split("/")[0]


def score(records, predictions):
    """{group: Score} of predictions for the records: boxes by IoU, all else by exact match."""
    pairs = {}
    for record, prediction in zip(records, predictions, strict=True):
        pairs.setdefault(group_of(record), []).append((prediction, generation.split(record)[2]))
    scores = {}
    for group, members in pairs.items():
        is_box = group.startswith("box")
        measure = metrics.box_accuracy if is_box else metrics.share_that_agree
        name = "IoU >= 0.5" if is_box else "exact match"
        scores[group] = report.Score(measure(*zip(*members, strict=True)), len(members), name)
    return scores


def answers_of(folder, records, search_dirs):
    """The answers of the model in a checkpoint folder; progress goes to stderr."""
    model, tokenizer = loading.load_model(folder), loading.load_tokenizer(folder)

    def show(done, total):
        print(f"\r{folder}: {done}/{total} answers", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return generation.answer(
        model,
        tokenizer,
        records,
        search_dirs=search_dirs,
        batch_size=BATCH_SIZE,
        max_new_tokens=MAX_NEW_TOKENS,
        on_batch=show,
    )


def choose(records, predictions, search_dirs):
    """The first examples of each group, boxes before the rest: list of report.Example."""
    shown, counts = [], {}
    for number, record in enumerate(records):
        group = group_of(record)
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= (SHOWN_BOXES // 2 if group.startswith("box") else SHOWN_OTHERS):
            shown.append((not group.startswith("box"), number))
    examples = []
    for _, number in sorted(shown):
        _, query, answer = generation.split(records[number])
        image = read_image(query.partition("<img>")[2].partition("</img>")[0], search_dirs=search_dirs)
        said = {stage: answers[number] for stage, answers in predictions.items()}
        examples.append(report.Example(query, answer, said, image))
    return examples


def losses(output_dir):
    """[(step, loss), ..], the steps and the seconds of a training, from trainer_state.json in its output folder."""
    history = json.loads((Path(output_dir) / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    seconds = sum(entry["train_runtime"] for entry in history if "train_runtime" in entry)
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry], history[-1]["step"], seconds


def main(argv=None):
    """Evaluate what the command line names and write the report."""
    parser = argparse.ArgumentParser(prog="python scripts/quickstart/evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("test", help="conversation file of questions that no stage trained on")
    parser.add_argument("output", help="folder of the report")
    parser.add_argument("--stage", action="append", required=True, metavar="NAME=MODEL", help="a model to ask")
    parser.add_argument("--curve", action="append", default=[], metavar="NAME=OUTPUT", help="a training to plot")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    stages, trainings = named(args.stage), named(args.curve)
    records = conversations.read(args.test)
    search_dirs = conversations.search_dirs(args.test)
    predictions = {stage: answers_of(folder, records, search_dirs) for stage, folder in stages.items()}
    scores = {stage: score(records, answers) for stage, answers in predictions.items()}
    curves = {name: losses(folder) for name, folder in trainings.items()}
    facts = {
        "questions": f"{len(records)}, one a conversation, about pictures that no stage has seen; greedy answers",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **{f"training, {name}": f"{steps} steps, {seconds:.0f} s" for name, (_, steps, seconds) in curves.items()},
    }
    path = report.write(
        args.output,
        title="Quickstart: a tiny Qwen-VL learns to see",
        facts=facts,
        scores=scores,
        curves={name: points for name, (points, *_) in curves.items()},
        examples=choose(records, predictions, search_dirs),
    )
    print(report.accuracy_table(scores))
    print(f"report: {path}")


def named(pairs):
    """{name: value} of ["name=value", ..]; ValueError for one without a name."""
    split = [pair.partition("=") for pair in pairs]
    if not all(name and value for name, _, value in split):
        raise ValueError(f"{' '.join(pairs)}: give each as NAME=FOLDER")
    return {name: value for name, _, value in split}


if __name__ == "__main__":
    run(main)
