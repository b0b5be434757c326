"""--eval_generate in one process: the figures of `qwen-vl evaluate`, and a training that does not know of it."""

import gc
import json
import re
import shlex
import shutil
from contextlib import nullcontext

import pytest
import torch
from helpers import runs

from qwen_vl.checkpoint import loading
from qwen_vl.cli import evaluate
from qwen_vl.files import read_entries
from qwen_vl.training.held_out import answer_log, answers, questions
from qwen_vl.training.monitor.callbacks import METRICS_FILE

GENERATE = {"eval_generate": True, "eval_generate_limit": 6, "eval_generate_max_new_tokens": 8}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}
OF_THE_CLOCK = ("second", "runtime", "share", "time/", "data_wait", "mfu", "memory")
ALL_TASKS = [  # few words, which a tiny model learns in a moment
    ("images/train_00.jpg", "Red?", "yes"),
    ("images/train_01.jpg", "Where?", "<box>(1,2),(3,4)</box>"),
    (None, "1+1?", "2"),
    (None, "Count!", "1 2 3 4 5 6 7 8 9 1 2 3"),
]


def log_of(out):
    """The log of a run, without what depends on the clock and the mean loss, which a resumed run takes of its steps."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    lines = [{key: line[key] for key in line if not any(word in key for word in OF_THE_CLOCK)} for line in history]
    return [line for line in lines if "train_loss" not in line]


@pytest.mark.parametrize(
    "flags",
    [
        ("--fix_vit", "False"),
        ("--use_lora", "--lora_dropout", "0.3", "--gradient_checkpointing", "True"),
        ("--use_lora", "--bf16", "True", "--vision_cache", "features"),
    ],
    ids=["full", "lora", "half"],
)
def test_a_run_is_the_same_with_and_without_questions(make_checkpoint, tmp_path, monkeypatch, flags):
    """Bit for bit, also when it is resumed: losses, weights, optimizer and random states."""
    monkeypatch.chdir(tmp_path)
    settings = {**EVALUATED, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    outs, steps = {}, [2] * 6 + [4] * 6 + [6] * 6
    for name, more in (("plain", {}), ("asked", GENERATE)):
        (tmp_path / name).mkdir()
        data = runs.write_data(tmp_path / name)
        outs[name] = runs.train(
            make_checkpoint(), tmp_path / name / "out", *flags, eval_data_path=data, **settings, **more
        )
    plain, asked = log_of(outs["plain"]), log_of(outs["asked"])
    assert [{key: after[key] for key in before} for before, after in zip(plain, asked, strict=True)] == plain
    assert len(runs.losses(outs["asked"], "eval_score")) == 3 and not runs.losses(outs["plain"], "eval_score")
    assert runs.equal(runs.weights(outs["plain"]), runs.weights(outs["asked"]))
    for file in ("optimizer.pt", "rng_state.pth"):
        torch.set_printoptions(threshold=10**9, precision=20)
        first, second = (torch.load(outs[name] / "checkpoint-6" / file, weights_only=False) for name in outs)
        torch.set_printoptions(profile="default")
        assert str(first) == str(second), file
    file = outs["asked"] / answer_log.FILE
    said = file.read_text()
    assert [entry["step"] for entry in answer_log.read(file)] == steps
    file.write_text(said + '{"step": 6, "id": "torn')  # of a run that was killed
    more = {**GENERATE, "resume_from_checkpoint": outs["asked"] / "checkpoint-3", "eval_data_path": data}
    resumed = runs.train(make_checkpoint(), outs["asked"], *flags, **{**settings, **more})
    assert log_of(resumed) == asked and runs.equal(runs.weights(resumed), runs.weights(outs["plain"]))
    assert file.read_text() == said


def test_the_figures_are_those_of_the_command_and_choose_the_best_model(make_checkpoint, tmp_path):
    data = runs.write_data(tmp_path, ALL_TASKS)
    settings = {"data_path": data, "max_steps": 60, "learning_rate": 5e-3, "warmup_steps": 5}
    settings |= {"eval_data_path": data, "eval_strategy": "steps", "eval_steps": 20, "eval_generate": True}
    settings |= {"save_strategy": "best"}
    best = ("--metric_for_best_model", "eval_score", "--load_best_model_at_end", "--loss_on", "answers")
    out = runs.train(make_checkpoint(), tmp_path / "out", *best, **settings)
    state = json.loads((out / "trainer_state.json").read_text())
    evaluations = {line["step"]: line for line in state["log_history"] if "eval_score" in line}
    chosen = evaluations[state["best_global_step"]]
    assert state["best_metric"] == chosen["eval_score"] == max(runs.losses(out, "eval_score")) > 40
    assert chosen["eval_generate_unanswered"] == 0 and 0 < chosen["eval_generate_share"] < 1
    words = ["--data", data, "--image_folder", runs.GOLDEN, "--output_dir", tmp_path / "results"]
    evaluate.main([str(out), *map(str, words)])
    (path,) = (tmp_path / "results").glob("*/*/scores.json")
    figures = json.loads(path.read_text())["figures"]
    assert len(figures) > 20 and {name.partition("_")[0] for name in figures} >= {"boxes", "yes", "short", "text"}
    assert {name: chosen[f"eval_{name}"] for name in figures} == {name: one["value"] for name, one in figures.items()}
    report = (out / "report.html").read_text()
    assert all(text in report for text in ("Answers to held-out questions", "step 60", "Count!", "eval_boxes_f1"))
    (logged,) = [line for line in read_entries(out / METRICS_FILE) if line.get("eval_score") and line["step"] == 60]
    assert logged["eval_text_cider"] == evaluations[60]["eval_text_cider"]


def tensors():
    """The tensors that are alive: their number, and that of their bytes."""
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return len(alive), sum(one.nbytes for one in alive)


def test_no_tensor_stays_and_the_mode_is_as_before(make_checkpoint, tmp_path):
    model, tokenizer = loading.load_model(make_checkpoint()), loading.load_tokenizer(make_checkpoint())
    asked = questions.read(
        str(runs.write_data(tmp_path)), image_folder=str(runs.GOLDEN), limit=8, max_new_tokens=4, batch_size=3
    )
    asker, progress = answers.Asker(asked, tokenizer, output_dir=tmp_path, is_sharded=False), []

    def ask(step):
        record = lambda *numbers: progress.append(numbers)  # noqa: E731
        return asker.ask(model, step=step, autocast=nullcontext(), on_progress=record)

    state = torch.get_rng_state()
    before = tensors()
    for mode in (True, False):
        model.train(mode)
        logs = ask(step=int(mode))
        assert model.training is mode and tensors() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert progress[-1] == (8, 8) and len(progress) > 2
    assert set(logs) == {*asked.figures, "generate_unanswered", "generate_runtime", "generate_share"}


def test_an_image_that_cannot_be_opened_leaves_its_record_unanswered(make_checkpoint, tmp_path):
    model, tokenizer = loading.load_model(make_checkpoint()), loading.load_tokenizer(make_checkpoint())
    (tmp_path / "gone.png").write_bytes(b"no image")
    data = runs.write_data(tmp_path, [("gone.png", "Red?", "yes"), *runs.TEXTS[:3]])
    asked = questions.read(str(data), image_folder=str(runs.GOLDEN), limit=9, max_new_tokens=2, batch_size=2)
    asker = answers.Asker(asked, tokenizer, output_dir=tmp_path, is_sharded=False)

    def ask(step):
        return asker.ask(model, step=step, autocast=nullcontext(), on_progress=lambda *numbers: None)

    assert ask(step=1)["generate_unanswered"] == 1
    first, *others = answer_log.read(tmp_path / answer_log.FILE)
    assert first["id"] == "sample-0" and first["answer"] is first["score"] is None and "gone.png" in first["error"]
    assert len(others) == 3 and not any("error" in entry or entry["score"] is None for entry in others)

    model.lm_head.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match=r"logits are not finite for sample-.*lower --learning_rate"):
        model.train()
        ask(step=2)
    assert model.training and len(answer_log.read(tmp_path / answer_log.FILE)) == 4


def test_the_command_of_the_document_keeps_the_best_answers(make_checkpoint, tmp_path, monkeypatch):
    """With its YAML as it is, but for the number of steps."""
    (line,) = re.findall(r"^python finetune.py (.*)$", (runs.ROOT / "docs/evaluation.md").read_text(), re.MULTILINE)
    config, *words = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    data = runs.write_data(tmp_path)
    for name in ("train.json", "held_out.json"):
        shutil.copy(data, name)
    shutil.copytree(make_checkpoint(), "Qwen/Qwen-VL-Chat")
    steps = ("--max_steps", "2", "--eval_steps", "1", "--save_steps", "1", "--eval_generate_max_new_tokens", "4")
    there = ("--image_folder", str(runs.GOLDEN), "--use_cpu", "True", "--dataloader_num_workers", "0")
    out = runs.run([str(runs.ROOT / config), *words, *steps, *there])
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["best_metric"] == max(runs.losses(out, "eval_score")) and (out / "adapter_config.json").is_file()
    assert len(answer_log.read(out / answer_log.FILE)) == 2 * len(runs.TEXTS)
