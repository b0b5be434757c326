"""Scored runs of a results folder, written by hand."""

import json
from dataclasses import asdict, replace

from helpers.evaluations import IDENTITY

from qwen_vl.evaluation import worst
from qwen_vl.evaluation.records import Record

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>|`*\"'&\u202e\x1b[31m\x00\u2028\ud800=1"


def sample(id="a", score=0.0, **changes):
    """Return a line of samples.jsonl."""
    line = {"id": id, "images": [], "question": "Q?", "answers": ["yes"], "options": [], "answer": "no"}
    line |= {"scored": "no", "score": score, "tokens": 1, "finish": "stop", "unmatched": False}
    return line | {"boxes": None, "cluster": id, "extra": {}} | changes


def figure(value, error=None, unit="percent"):
    low, high = (None, None) if error is None else (value - 1.96 * error, value + 1.96 * error)
    return {"value": value, "count": 4, "standard_error": error, "low": low, "high": high, "unit": unit}


def write_run(results, run="squares", *, label="m", samples=(), images=(), is_chat=True, **changes):
    """Write a scored run by hand; return its folder."""
    folder = results / f"{label[:4]}-01234567" / run
    folder.mkdir(parents=True)
    (folder.parent / "model.json").write_text(json.dumps(asdict(replace(IDENTITY, label=label, is_chat=is_chat))))
    counts = {"records": 4, "answered": 4, "unanswered": 0, "unmatched": 1, "unreadable_images": 0}
    scores = {"benchmark": run.split("+")[0], "title": "Squares", "model": label, "headline": "accuracy"}
    scores |= {"figures": {"accuracy": figure(61.0, 1.0), "rest": figure(0.5, unit="share")}, "notes": ["a note"]}
    scores |= {"counts": counts, "incomplete": False, "subset": False, "published_note": "", "metric": "exact"}
    scores |= {"published": {"Qwen-VL": 63.8, "Qwen-VL-Chat": 61.5}, "published_figures": {"rest": {"Qwen-VL": 0.25}}}
    settings = {"template": "<img>{image}</img>{question}", "style": "raw", "decoding": {"kind": "generate"}}
    scores["settings"] = settings | {"seed": 3, "complete_size": 5000, "variant": "official", "judge": None}
    (folder / "scores.json").write_text(json.dumps(scores | changes))
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    worst.keep(folder, [Record(line["id"], "", tuple(images)) for line in samples], has_scores=True)
    return folder
