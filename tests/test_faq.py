"""The questions and answers: each has an issue and something to do, and what a CPU can do runs on tiny models."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.adapters import write_adapter

from qwen_vl.cli import main as cli_main
from qwen_vl.cli import merge
from qwen_vl.data import conversations

ROOT = Path(__file__).resolve().parents[1]
ISSUE = re.compile(r"\[([\w.-]+/[\w.-]+)#(\d+)\]\(https://github\.com/([\w.-]+/[\w.-]+)/(?:issues|pull)/(\d+)\)")
MERGED = "output/merged"
OUTPUTS = {"merge": 2, "export": 2, "quantize": 2}  # which word of the command is the folder that it makes
FROM_A_HUB = ("--hub", "ms:")  # such commands need a network: tests/hubs has their tests
DIFFER = "qwen-vl verify Qwen/Qwen-VL-Chat"  # has to find a difference


class Question(NamedTuple):
    """A question of the page: its heading, its answer with commands, the commands, and the line of issues."""

    title: str
    answer: str
    commands: list[str]
    issues: str


def questions(name):
    """Return all questions of a page of docs/."""
    found = []
    for part in (ROOT / "docs" / name).read_text(encoding="utf-8").split("\n### ")[1:]:
        title, _, rest = part.partition("\n")
        answer, _, issues = re.split(r"\n## ", rest)[0].strip().rpartition("\n")
        blocks = re.findall(r"^```sh\n(.*?)^```$", answer, re.DOTALL | re.MULTILINE)
        found.append(Question(title, answer, "".join(blocks).splitlines(), issues))
    return found


ENGLISH, CHINESE = questions("faq.md"), questions("faq.zh.md")


def test_there_are_forty_questions_and_no_question_twice():
    for page in (ENGLISH, CHINESE):
        assert len({question.title for question in page}) == len(page) >= 40


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_each_question_has_an_issue_and_something_to_do(page):
    for title, answer, commands, issues in page:
        links = ISSUE.findall(issues)
        assert links and len(links) == issues.count("]("), f"{title}: an issue is linked as OWNER/NAME#N"
        assert all(link[:2] == link[2:] for link in links), f"{title}: text and address of an issue differ"
        assert commands or re.search(r"`--\w|\d", answer), f"{title}: no command, no flag and no number"
        assert len(answer.partition("```")[0].split()) <= 90, f"{title}: the answer is long"


def test_both_languages_cite_the_same_issues_and_show_the_same_commands():
    assert [ISSUE.findall(question.issues) for question in ENGLISH] == [ISSUE.findall(q.issues) for q in CHINESE]
    assert [question.commands for question in ENGLISH] == [question.commands for question in CHINESE]


def test_the_planned_memory_in_the_answers_is_what_the_planner_says(capsys):
    planned = 0
    for question, chinese in zip(ENGLISH, CHINESE, strict=True):
        for command in question.commands:
            if command.startswith("qwen-vl plan") and "--hub" not in command:
                cli_main.main(shlex.split(command)[1:])
                (memory,) = re.findall(r"\*\*([\d.]+ GB)\*\* \(", capsys.readouterr().out)
                assert memory in question.answer and memory in chinese.answer, command
                planned += 1
    assert planned >= 6


@pytest.fixture
def workplace(make_checkpoint, make_int4_checkpoint, tmp_path, monkeypatch):
    """Return a folder with all that the commands name, and go there."""
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen/Qwen-VL-Chat", "models/Qwen-VL-Chat"):
        shutil.copytree(make_checkpoint(), tmp_path / name)
    shutil.copytree(make_checkpoint("raw"), tmp_path / "Qwen/Qwen-VL")
    shutil.copytree(make_int4_checkpoint(), tmp_path / "Qwen/Qwen-VL-Chat-Int4")
    write_adapter(tmp_path / "Qwen/Qwen-VL-Chat", tmp_path / "output/lora")
    write_adapter(tmp_path / "Qwen/Qwen-VL-Chat-Int4", tmp_path / "output/qlora", std=0.05)  # its base is in float16
    write_adapter(tmp_path / "Qwen/Qwen-VL", tmp_path / "output_qwen")
    (tmp_path / "output_qwen/base.json").unlink()  # as the original code writes adapters
    shutil.copytree(ROOT / "data/examples", tmp_path / "data/examples")
    shutil.copytree(ROOT / "data/examples", tmp_path, dirs_exist_ok=True)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("dog.jpg", "a.jpg", "b.jpg"):
        shutil.copy(ROOT / "data/examples/cat.jpg", photos / name)
    talks = conversations.read(ROOT / "data/examples/conversations.json")[:2]
    for name in ("my_data.json", "held_out.json", "questions.json"):
        (tmp_path / name).write_text(json.dumps(talks), encoding="utf-8")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    (tmp_path / "llava.json").write_text(json.dumps([{"image": "dog.jpg", "conversations": turns}]), encoding="utf-8")
    messages = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}]
    (tmp_path / "swift.jsonl").write_text(json.dumps({"messages": messages, "images": ["photos/dog.jpg"]}) + "\n")
    merge.main(["output/lora", "prepared"])
    return tmp_path


def run(command):
    """Run a command of the page, on the CPU and with short answers; its output folder is made anew."""
    verb, *words = shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", command))[1:]
    if verb in OUTPUTS:
        shutil.rmtree(words[OUTPUTS[verb] - 1], ignore_errors=True)
    if verb == "quantize" and "nf4" not in words:
        words += ["--group_size", "32"]
    if verb in ("chat", "evaluate", "verify"):
        words += ["--device", "cpu"]
    if verb in ("evaluate", "verify"):
        words += ["--max_new_tokens", "4"]
    cli_main.main([verb, *words])


def test_the_commands_that_a_cpu_can_run_do_run(workplace, capsys):
    """Every question starts with the merged model of the adapter, as the questions can be read in any order."""
    verbs, ran = ("data", "export", "merge", "quantize", "verify", "chat", "evaluate"), 0
    for question in ENGLISH:
        shutil.rmtree(workplace / MERGED, ignore_errors=True)
        shutil.copytree(workplace / "prepared", workplace / MERGED)
        for command in question.commands:
            words = shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", command))
            if words[0] != "qwen-vl" or words[1] not in verbs or any(part in command for part in FROM_A_HUB):
                continue
            if words[1] == "evaluate" and "--data" not in words:  # tests/test_docs.py has files of benchmarks
                continue
            if command.startswith(DIFFER):
                with pytest.raises(ValueError, match="differ by"):
                    run(command)
            else:
                run(command)
            ran += 1
    assert ran >= 30
