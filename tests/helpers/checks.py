"""`qwen-vl data check` inside the test process."""

import json

from qwen_vl.cli import data
from qwen_vl.data.conversations import DataError

Q, A = {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": "A red box."}


def record(name, question="What is it?", answer="A red box."):
    """Return a record with one exchange, whose answer ends with its name."""
    return {"id": name, "conversations": [{**Q, "value": question}, {**A, "value": f"{answer} {name}"}]}


def check(*argv):
    """Return (exit code, error) of `qwen-vl data check argv`."""
    try:
        data.main(["check", *map(str, argv)])
    except DataError as error:
        return 1, str(error)
    return 0, ""


def report_of(*argv, folder):
    """Return (exit code, the reported problems as dicts)."""
    code, _ = check(*argv, "--report", folder / "report.jsonl")
    return code, [json.loads(line) for line in (folder / "report.jsonl").read_text(encoding="utf-8").splitlines()]
