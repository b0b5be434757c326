"""The walks of CONTRIBUTING.md: their stops exist, each leads to the next, and none is long."""

import ast
import re
from pathlib import Path

import pytest

from qwen_vl.training.trainer_hooks import HookedTrainer

ROOT = Path(__file__).resolve().parents[1]
SECTION = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Four walks\n")[2].partition("\n## ")[0]
WALKS = dict(re.findall(r"^\d\. \*\*(.+?)[.:]\*\*(.+?)(?=^\d\. |\Z)", SECTION, re.DOTALL | re.MULTILINE))
MAX_STOPS = 19


def definition(stop):
    """Return the syntax tree of a stop, FILE:FUNCTION or FILE:CLASS.METHOD. Fail if there is no such definition."""
    file, _, name = stop.partition(":")
    path = ROOT / file if file == "finetune.py" else ROOT / "qwen_vl" / file
    node = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    return node


def names_in(node):
    """Return the names and attributes that a definition uses."""
    return {getattr(part, "id", None) or getattr(part, "attr", None) for part in ast.walk(node)}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
def test_every_stop_is_called_by_an_earlier_one(walk):
    stops = re.findall(r"`([\w/]+\.py:[\w.]+)`", walk)
    starts = {stops[0], *re.findall(r"then `([\w/]+\.py:[\w.]+)`", walk)}  # another command, or another run
    assert 5 < len(stops) <= MAX_STOPS and len(set(stops)) == len(stops)
    seen = set()
    for stop in stops:
        name = stop.rpartition(":")[2].rpartition(".")[2]
        is_hook = name == "forward" or hasattr(HookedTrainer, name)  # transformers and torch call it
        assert stop in starts or name in seen or is_hook, f"no earlier stop calls {stop}"
        seen |= names_in(definition(stop))


def test_all_four_walks_are_found():
    assert len(WALKS) == 4 and "`" not in "".join(WALKS)
