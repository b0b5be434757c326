"""The parsers: --debug in every verb, and no argparse elsewhere."""

import re

import pytest
from helpers import runs
from helpers.commands import exit_code

from qwen_vl.cli import data, main, parsers

DEBUG_AT = {  # words of every verb that end in an error of the user; MISSING is a folder that does not exist
    "plan": ["--model", "MISSING"],
    "merge": ["MISSING", "OUT"],
    "export": ["MISSING", "OUT"],
    "quantize": ["MISSING", "OUT", "--method", "nf4"],
    "verify": ["MISSING", "MISSING"],
    "checkpoint show": ["MISSING"],
    "checkpoint export": ["MISSING", "OUT"],
    "chat": ["MISSING", "--query", "hi"],
    "push": ["MISSING", "owner/name"],
    "demo": ["MISSING"],
    "serve": ["MISSING"],
    "evaluate": ["MISSING", "--data", "MISSING"],
    "data check": ["MISSING"],
    "data preview": ["MISSING", "--model", "MISSING"],
    "data cache": ["MISSING", "--model", "MISSING", "--vision_cache", "OUT"],
    "data convert": ["MISSING", "OUT.json", "--from", "llava"],
    "train": ["--model_name_or_path", "MISSING", "--data_path", "MISSING", "--output_dir", "OUT", "--use_cpu"],
}


@pytest.mark.parametrize("verb", DEBUG_AT)
def test_every_verb_takes_debug(verb, tmp_path, capsys):
    """Print one line without --debug, and raise the exception with it, at any place in the command line."""
    words = [str(tmp_path / word) if word.isupper() else word for word in DEBUG_AT[verb]]
    words = [str(tmp_path / "OUT.json") if word == "OUT.json" else word for word in words]
    assert exit_code([*verb.split(), *words]) == 1
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in errors
    first, *rest = verb.split()
    for line in (
        [first, *rest, *words, "--debug"],
        ["--debug", first, *rest, *words],
        [first, "--debug", *rest, *words],
    ):
        if verb == "train" and line[1] == "--debug":
            continue  # which takes a value there: transformers' own flag
        with pytest.raises((ValueError, OSError)):
            main.entry(line)


def test_every_verb_is_tested_with_debug_and_shows_it(capsys):
    verbs = {*main.VERBS, *(f"data {verb}" for verb in data.VERBS), "checkpoint show", "checkpoint export"}
    assert DEBUG_AT.keys() == verbs - {"data", "checkpoint"}
    for verb in verbs - {"train"}:
        assert exit_code([*verb.split(), "--help"]) == 0
        assert "--debug" in capsys.readouterr().out, verb


def test_command_lines_are_parsed_in_cli_alone():
    """Find no argparse below cli/, where tools are functions. Scripts are commands of their own."""
    files = [path for path in (runs.ROOT / "qwen_vl").rglob("*.py") if path.parent.name != "cli"]
    wrong = [
        path.name
        for path in files
        if re.search(r"^\s*(import|from) argparse\b(?! import Namespace$)", path.read_text(), re.MULTILINE)
    ]
    assert len(files) > 80 and not wrong


def test_folders_are_given_by_name():
    assert parsers.by_name("--adapters", ["cats=out/a=b", "dogs=x"]) == {"cats": "out/a=b", "dogs": "x"}
    for words, message in ((["cats"], "use name=folder"), (["=x"], "use name"), (["a=x", "a=y"], "given twice")):
        with pytest.raises(ValueError, match=rf"--adapters .*{message}"):
            parsers.by_name("--adapters", words)


@pytest.mark.parametrize(
    "words, said",
    [
        ("serve MODEL --prot 3", "unknown argument --prot (did you mean --port?), 3"),
        ("evaluate MODEL --max-new-tokens=3", "unknown argument --max-new-tokens=3 (write --max_new_tokens)"),
        ("merge A B C", "unknown argument C"),
        ("checkpoint show A --all", "unknown argument --all"),
        ("chat", "the following arguments are required: model"),
        ("quantize A B --method q5", "argument --method: invalid choice: 'q5'"),
        ("verify A B --tolerance nan", "argument --tolerance: nan: use a number of at least 0"),
        ("verify A B --max_new_tokens 0", "argument --max_new_tokens: 0: use a number above 0"),
        ("plan --gpu_memory inf", "argument --gpu_memory: inf: use a number above 0"),
        ("merge A B --max_shard_size nan", "argument --max_shard_size: nan: use a size such as 5GB"),
        ("quantize A B --method nf4 --max_shard_size 5", "argument --max_shard_size: 5: use a size such as 5GB"),
        ("fly", "argument VERB: invalid choice: 'fly'"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, said, capsys):
    """Check that the usage of a verb with many flags does not hide what is wrong."""
    assert exit_code(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and line.endswith("--help` lists the options")
