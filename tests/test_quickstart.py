"""The quickstart's parts on a dozen images: data, tiny model, answers, report, and the scripts that call them."""

import json
import os
import re
import subprocess
from pathlib import Path

import evaluate  # scripts/quickstart is on the path (conftest.py)
import make_data
import numpy as np
import progress
import pytest
from helpers.drawings import panels_of
from PIL import Image, ImageDraw

from qwen_vl.checkpoint import random_model
from qwen_vl.cli import evaluate as command
from qwen_vl.data import chatml, conversations
from qwen_vl.evaluation import answering
from qwen_vl.evaluation.generation import split
from qwen_vl.evaluation.greedy import Said
from qwen_vl.evaluation.metrics import find_boxes
from qwen_vl.training.flags import arguments

ROOT = Path(__file__).resolve().parents[1]
FILES = ("boxes", "full", "lora", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a data folder of 12 images of each split."""
    out = tmp_path_factory.mktemp("data")
    make_data.build(out, limit=12)
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the checkpoint folder of the tiny model, with the model and its tokenizer."""
    out = tmp_path_factory.mktemp("tiny")
    return out, *random_model.build(ROOT / "configs/model/tiny.json", out)


def test_records_are_valid_and_fit_the_tiny_model(folder, tiny):
    _, net, tokenizer = tiny
    for name in FILES:
        records = conversations.read(folder / f"{name}.json")
        assert records, name
        for record in records:
            ids = chatml.encode(record, tokenizer)["input_ids"]
            assert max(ids) < net.config.vocab_size
            assert len(ids) < net.config.seq_length


def test_the_test_file_shows_test_images_alone(folder):
    for name, forbidden in (
        ("boxes", "<img>test/"),
        ("full", "<img>test/"),
        ("lora", "<img>test/"),
        ("test", "<img>train/"),
    ):
        text = (folder / f"{name}.json").read_text(encoding="utf-8")
        assert "<img>" in text and forbidden not in text, name


def test_boxes_hold_the_shape_and_nothing_else(folder):
    """Every pixel far from the background's color lies in the box, and reaches each of its sides."""
    seen = 0
    for record in conversations.read(folder / "test.json"):
        _, query, answer = split(record)
        if not record["id"].startswith("box-en/"):
            continue
        with Image.open(folder / query.partition("<img>")[2].partition("</img>")[0]) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        far = np.abs(pixels - values[counts.argmax()]).max(-1) > 90
        rows, columns = np.where(far.any(1))[0], np.where(far.any(0))[0]
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 64 * 1000
        assert np.abs(edges - find_boxes(answer)[0]).max() <= 25, record  # a pixel is 15.6
        seen += 1
    assert seen == 12


@pytest.mark.parametrize("shape", ["circle", "rectangle", "triangle"])
def test_look_reads_color_shape_and_box_from_pixels(tmp_path, shape):
    image = Image.new("RGB", (64, 64), (240, 250, 235))
    draw = ImageDraw.Draw(image)
    if shape == "triangle":
        draw.polygon([(32, 16), (16, 47), (47, 47)], fill=make_data.PALETTE["teal"])
    else:
        (draw.ellipse if shape == "circle" else draw.rectangle)((16, 16, 47, 47), fill=make_data.PALETTE["teal"])
    image.save(tmp_path / "one.png")
    color, found, box, _ = make_data.look(tmp_path / "one.png")
    assert (color, found, box) == ("teal", shape, (250, 250, 750, 750))


def test_pixels_agree_with_the_answers_of_easy_vqa(tmp_path):
    scenes = list(make_data.scenes("train", tmp_path, limit=200))
    assert scenes
    for scene in scenes:
        said = {answer for _, answer in scene.questions} - {"yes", "no"}
        assert said <= {scene.color, scene.shape}, scene
        kinds = make_data.by_kind(scene)
        for subject, own in (("color", scene.color), ("shape", scene.shape)):
            asked = {
                kind: {make_data.THING.search(text)[1] for text, _ in kinds[f"{kind} {subject}"]}
                for kind in ("shown", "absent")
            }
            assert asked["shown"] <= {own} and own not in asked["absent"], scene


def test_every_question_of_easy_vqa_has_its_own_chinese():
    from easy_vqa import get_test_questions, get_train_questions

    questions = set(get_train_questions()[0]) | set(get_test_questions()[0])
    assert len({make_data.translate(question) for question in questions}) == len(questions) == 107
    assert make_data.translate("does the image not contain a red shape?") == "图片是否不包含红色图形？"
    assert make_data.translate("what is the color of the circle?") == "圆形的颜色是什么？"
    with pytest.raises(ValueError, match="easy-vqa"):
        make_data.translate("how many shapes?")


def test_tiny_model_answers_and_the_report_is_written(folder, tiny, tmp_path, capsys):
    base, _, _ = tiny
    test = tmp_path / "test.json"
    records = conversations.read(folder / "test.json")
    kept = {record["category"]: record for record in records}
    test.write_text(json.dumps(list(kept.values())), encoding="utf-8")
    for split_name in ("train", "test"):
        (tmp_path / split_name).symlink_to(folder / split_name)
    history = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 1.5}, {"step": 20, "train_runtime": 4.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}), encoding="utf-8")
    stages = ["--stage", f"before={base}", "--curve", f"full={tmp_path}"]
    evaluate.main([str(test), str(tmp_path / "report"), *stages])
    loss = tmp_path / "report" / "loss.svg"
    assert loss.stat().st_size > 1000
    assert [title for title, _ in panels_of(loss.read_text(encoding="utf-8"))] == ["full"]
    written = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert set(written["scores"]["before"]) == set(kept)
    assert "| box-zh | IoU >= 0.5 | 1 |" in capsys.readouterr().out
    said = {example["question"]: example["predictions"]["before"] for example in written["examples"]}
    samples, _ = evaluated(base, test, tmp_path / "results")
    assert len(said) == 6 and said == {sample["question"]: sample["answer"] for sample in samples}


def evaluated(model, test, results):
    """Return (samples, figures) of `qwen-vl evaluate MODEL --data TEST`."""
    command.main([str(model), "--data", str(test), "--output_dir", str(results), "--device", "cpu"])
    (folder,) = results.glob("*/data-*")
    samples = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    figures = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["figures"]
    return [json.loads(line) for line in samples], figures


def test_the_report_has_the_figures_of_qwen_vl_evaluate(folder, tiny, tmp_path, monkeypatch):
    """Of a model that is wrong on every third question."""
    base, test, asked = tiny[0], folder / "test.json", []
    talks = [[turn["value"] for turn in record["conversations"]] for record in conversations.read(test)]
    known = {question: answer if number % 3 else "no" for number, (question, answer) in enumerate(talks)}

    def say(model, tokenizer, prompts, decoding, *, on_batch, **_):
        asked.append((prompts, decoding))
        on_batch([(index, Said(text=known[prompt.text])) for index, prompt in enumerate(prompts)])

    monkeypatch.setattr(answering, "greedy_answers", say)
    evaluate.main([str(test), str(tmp_path / "report"), "--stage", f"x={base}"])
    scores = json.loads((tmp_path / "report/report.json").read_text(encoding="utf-8"))["scores"]["x"]
    samples, figures = evaluated(base, test, tmp_path / "results")
    assert len(samples) == len(talks) and len(asked) == 2
    assert len(asked[0][0]) == len(asked[1][0]) and set(asked[0][0]) == set(asked[1][0])
    assert asked[0][1] == asked[1][1]
    for group, score in scores.items():
        name = "first_at_0.5" if group.startswith("box") else "agree"
        figure = figures[f"category/{group} {name}"]
        assert (figure["value"], figure["count"]) == pytest.approx((100 * score["share"], score["count"]))
        assert 0.6 < score["share"] < 1, group
    assert len(scores) == 6


CONFIGS = sorted((ROOT / "configs/train").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_training_configs_parse(path, tmp_path):
    assert len(CONFIGS) >= 4
    paths = ["--data_path", "x.json", "--eval_data_path", "y.json", "--output_dir", str(tmp_path)]
    *_, lora, training = arguments.parse([str(path), *paths])
    assert training.use_lora == ("lora" in path.stem)
    assert lora.lora_r > 0


def test_quickstart_script_is_posix_sh_and_has_the_known_stages():
    script = ROOT / "scripts/quickstart.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert re.findall(r"^step (\w+) \"", script.read_text(encoding="utf-8"), re.MULTILINE) == list(progress.STAGES)


def marks_of(*passed, free=1.0, pace=1.0):
    """Return marks of stages that took `pace` times their seconds, the last beginning now; `free` of all or each."""
    free = free if isinstance(free, tuple) else (free,) * len(passed)
    moment, marks = 1e9, []
    for stage, share in zip(passed, free, strict=True):
        marks.append(progress.Mark(stage, moment, share))
        moment += pace * progress.STAGES[stage]
    return marks


def test_the_estimate_begins_with_what_is_known_and_follows_what_was_seen():
    names, whole = list(progress.STAGES), sum(progress.STAGES.values()) / 60
    assert progress.minutes_left(marks_of("data")) == pytest.approx(whole)
    assert progress.minutes_left(marks_of("data", free=0.5)) == pytest.approx(2 * whole)
    left = [progress.minutes_left(marks_of(*names[: n + 1])) for n in range(len(names))]
    assert left == sorted(left, reverse=True) and left[0] == pytest.approx(whole) and left[-1] == 0
    slow = progress.minutes_left(marks_of(*names[:3], pace=3))  # a slower machine, of which all is ours
    assert 2 * left[2] < slow < 3 * left[2]
    quick = progress.minutes_left(marks_of(*names[:3], pace=0.25))
    assert 0.25 * left[2] < quick < 0.6 * left[2]
    # Half of the machine was free, so stages took twice as long; and now it is as it was, or all ours, or hardly.
    for free, factor in ((0.5, 2), (1.0, 1), (0.1, 10)):
        marks = marks_of(*names[:4], free=(0.5, 0.5, 0.5, free), pace=2)
        assert progress.minutes_left(marks) == pytest.approx(factor * left[3], rel=0.6 if free != 0.5 else 0.01)


@pytest.mark.parametrize("load", [None, 3.14])
def test_headlines_say_what_is_left_and_when_the_machine_is_busy(tmp_path, monkeypatch, capsys, load):
    """Also where the system knows no load average."""
    monkeypatch.setattr(progress, "usable_cores", lambda: 2)
    if load is None:
        monkeypatch.delattr(os, "getloadavg", raising=False)
    else:
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    clock, shown, minutes = 1e9, [], []
    for stage, free in zip(progress.STAGES, (1.0, 0.5, 0.95, 1.0, 0.79, 1.0, 0.8, 0.5), strict=True):
        monkeypatch.setattr(progress, "free_share", lambda share=free: share)
        monkeypatch.setattr(progress.time, "time", lambda now=clock: now)
        progress.main([str(tmp_path / "marks.json"), stage, f"this is {stage}"])
        shown.append(capsys.readouterr().out.strip().splitlines())
        clock += progress.STAGES[stage]
    busy = {index for index, lines in enumerate(shown) if len(lines) == 2}
    assert busy == {1, 4}  # and never when all is done
    where = "load 3.1 on 2 cores" if load else "other programs on 2 cores"
    assert re.fullmatch(
        rf"this machine is busy \({where}, 50% of them free\): expect about \d+ more minutes", shown[1][1]
    )
    for stage, (first, *_) in list(zip(progress.STAGES, shown, strict=True))[:-1]:
        minutes.append(int(re.fullmatch(rf"=== \d+ min, about (\d+) more minutes? to go: this is {stage}", first)[1]))
    assert minutes[0] == round(sum(progress.STAGES.values()) / 60) and minutes[-1] == 1
    assert shown[-1] == [f"=== {sum(progress.STAGES.values()) / 60:.0f} min: this is done"]


def test_how_much_of_the_machine_is_free_is_measured():
    assert 0 < progress.free_share() <= 1 and progress.usable_cores() >= 1


def test_short_answers_weigh_more_and_the_last_stage_has_follow_ups(folder):
    lengths = {}
    for name in FILES[:3]:
        for record in conversations.read(folder / f"{name}.json"):
            turns = record["conversations"]
            assert ("weight" in record) != any("<box>" in turn["value"] for turn in turns[1::2])
            assert not any("<img>" in turn["value"] for turn in turns[1:])
            lengths.setdefault(name, []).append(len(turns))
    assert set(lengths["boxes"]) == set(lengths["full"]) == {2}
    assert set(lengths["lora"]) == {2, 4} and lengths["lora"].count(4) >= 12
