"""`qwen-vl evaluate` from end to end, with a tiny model of random weights and small files of real forms."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from helpers.openai_server import completion, serving
from PIL import Image

from qwen_vl.cli import evaluate

IMAGES = Path(__file__).parent / "golden" / "images"
NAMES = ("docvqa_val", "refcoco_testA", "scienceqa_test_img")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a --data_dir with a few records of three benchmarks, and held_out.json beside them."""
    folder = tmp_path_factory.mktemp("eval_data")
    documents = folder / "data/docvqa/val"
    (documents / "documents").mkdir(parents=True)
    for number in range(3):
        shutil.copy(IMAGES / f"train_0{number}.jpg", documents / "documents" / f"{number}.jpg")
    rows = [
        {"questionId": 10 * n + q, "question": f"What is {q}?", "image": f"documents/{n}.jpg", "answers": ["a", "b c"]}
        for n in range(3)
        for q in range(3)
    ]
    content = {"dataset_name": "docvqa", "dataset_split": "val", "data": rows}
    (documents / "val_v1.0.json").write_text(json.dumps(content))
    image = "data/coco/train2014/0.jpg"
    (folder / image).parent.mkdir(parents=True)
    shutil.copy(IMAGES / "train_00.jpg", folder / image)
    width, height = Image.open(folder / image).size
    boxes = [
        {"image": image, "sent": word, "bbox": [1, 2, 30, 40], "width": width, "height": height}
        for word in ("left", "right")
    ]
    write_lines(folder / "data/refcoco/refcoco_testA.jsonl", boxes)
    choices = [
        {"image": image, "hint": None, "question": "Which?", "choices": ["None", "NA", "cat"], "answer": 2},
        {"image": image, "hint": "Look.", "question": "Who?", "choices": ["a", "b"], "answer": 0},
    ]
    write_lines(folder / "data/scienceqa/scienceqa_test_img.jsonl", choices)
    turns = [
        ("Picture 1: <img>data/docvqa/val/documents/1.jpg</img>\nIs it red?", "yes"),
        ("Hello", "<ref>it</ref><box>(1,2),(30,40)</box>"),
    ]
    talks = [
        {"id": f"t{n}", "conversations": [{"from": "user", "value": q}, {"from": "assistant", "value": a}]}
        for n, (q, a) in enumerate(turns)
    ]
    (folder / "held_out.json").write_text(json.dumps(talks))
    return folder


def run(*words):
    evaluate.main([str(word) for word in words])


def scores_of(results):
    return {path.parent.name: json.loads(path.read_text()) for path in results.glob("*/*/scores.json")}


def answers_of(results):
    return {path.parent.name: path.read_bytes() for path in results.glob("*/*/answers.jsonl")}


@pytest.fixture(scope="module")
def evaluated(make_checkpoint, data_dir, tmp_path_factory):
    """Return the results folder of the tiny model over all of the data."""
    results = tmp_path_factory.mktemp("results")
    files = ("--data_dir", data_dir, "--data", data_dir / "held_out.json", "--image_folder", data_dir)
    run(
        make_checkpoint(), "--benchmarks", *NAMES, *files, "--output_dir", results, "--label", "tiny", "--device", "cpu"
    )
    return results


def test_all_stages(evaluated):
    scores = scores_of(evaluated)
    assert set(scores) == {*NAMES, "data-held_out"}
    (folder,) = evaluated.glob("tiny-????????")
    model = json.loads((folder / "model.json").read_text())
    assert model["fingerprint"].startswith(folder.name[5:]) and (model["kind"], model["label"]) == ("model", "tiny")
    counts = {name: content["counts"]["answered"] for name, content in scores.items()}
    assert counts == {"docvqa_val": 9, "refcoco_testA": 2, "scienceqa_test_img": 2, "data-held_out": 2}
    assert not any(content["incomplete"] or content["subset"] for content in scores.values())
    ranked = [json.loads(line) for line in answers_of(evaluated)["scienceqa_test_img"].decode().splitlines()]
    assert [len(line["losses"]) for line in ranked] == [3, 2] and ranked[0]["finish"] == "rank"
    samples = (folder / "refcoco_testA" / "samples.jsonl").read_text().splitlines()
    assert json.loads(samples[0])["boxes"]["right"] == [[1, 2, 30, 40]]
    settings = scores["data-held_out"]["settings"]
    assert settings["style"] == "chat" and settings["decoding"]["end"] == "im_end"
    assert (evaluated / "report.md").is_file()


@pytest.mark.parametrize("batch_size", [2])
def test_batch_sizes_give_the_same_bytes(evaluated, batch_size, make_checkpoint, data_dir, tmp_path):
    flags = ("--data_dir", data_dir, "--output_dir", tmp_path, "--batch_size", batch_size, "--stage", "answer")
    run(make_checkpoint(), "--benchmarks", *NAMES, *flags, "--device", "cpu")
    again = answers_of(tmp_path)
    assert len(again) == 3 and again == {name: answers_of(evaluated)[name] for name in again}
    assert not scores_of(tmp_path)


def test_scoring_and_reporting_need_no_model(evaluated, data_dir, tmp_path, capsys, monkeypatch):
    results = tmp_path / "results"
    shutil.copytree(evaluated, results)
    before = scores_of(results)
    for path in results.glob("*/*/scores.json"):
        path.unlink()
    monkeypatch.setattr(evaluate, "identify", None)
    flags = ("--data_dir", data_dir, "--output_dir", results)
    run("--stage", "score", "--benchmarks", "scienceqa_test_img", *flags)
    assert scores_of(results) == {"scienceqa_test_img": before["scienceqa_test_img"]}
    assert "tiny: scienceqa_test_img: accuracy" in capsys.readouterr().out
    run("--stage", "score", *flags)
    assert scores_of(results) == before
    run("--stage", "report", "--output_dir", results)
    for number in (0, 2, 12):
        run("--stage", "score", "--worst", number, *flags)
        worst = json.loads(next(results.glob("*/docvqa_val/worst.json")).read_text())
        assert len(worst["samples"]) == min(number, 9)


def test_an_interrupted_run_says_how_to_go_on(make_checkpoint, data_dir, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.LocalModel, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(make_checkpoint(), "--data", data_dir / "held_out.json", "--output_dir", tmp_path, "--device", "cpu")
    assert (
        f"{tmp_path} keeps the answers of all finished batches; run the same command again" in capsys.readouterr().err
    )


def test_own_data_that_has_moved_is_scored_where_it_is_given(evaluated, data_dir, tmp_path):
    results, moved = tmp_path / "results", tmp_path / "moved" / "held_out.json"
    shutil.copytree(evaluated, results)
    before = scores_of(results)["data-held_out"]
    settings = next(results.glob("*/data-held_out/settings.json"))
    settings.write_text(settings.read_text().replace(str(data_dir), str(tmp_path / "gone")))
    shutil.copytree(data_dir, moved.parent)
    with pytest.raises(
        ValueError, match=r"gone/held_out\.json is missing; give an existing conversation file to --data"
    ):
        run("--stage", "score", "--data_dir", data_dir, "--output_dir", results)
    run("--stage", "score", "--data", moved, "--output_dir", results)
    assert scores_of(results)["data-held_out"]["figures"] == before["figures"]
    moved.write_text(moved.read_text().replace("Hello", "Good day"))
    with pytest.raises(ValueError, match="have changed since they were answered"):
        run("--stage", "score", "--data", moved, "--output_dir", results)


def test_a_second_run_asks_nothing_and_loads_nothing(evaluated, make_checkpoint, data_dir, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.inference, "load", None)  # calling it would fail
    flags = ("--data_dir", data_dir, "--output_dir", evaluated, "--label", "tiny", "--device", "cpu")
    run(make_checkpoint(), "--benchmarks", "docvqa_val", *flags)
    assert "docvqa_val: 0 of 9 answered, 9 answered before" in capsys.readouterr().err


def test_what_differs_has_a_folder_of_its_own_and_marks(make_checkpoint, data_dir, tmp_path, capsys):
    flags = ("--data_dir", data_dir, "--output_dir", tmp_path, "--device", "cpu", "--max_new_tokens", 4)
    run(make_checkpoint(), "--benchmarks", "docvqa_val", *flags, "--style", "chat", "--limit", 4, "--seed", 1)
    (scores,) = scores_of(tmp_path).items()
    assert scores[0] == "docvqa_val+chat+max4+limit4+seed1" and scores[1]["subset"]
    assert "[subset of 4 records]" in capsys.readouterr().out
    run(make_checkpoint(), "--benchmarks", "scienceqa_test_img", *flags, "--generate")
    assert "scienceqa_test_img+generate+max4" in scores_of(tmp_path)


def test_errors_come_at_once_and_before_any_model(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "identify", None)
    flags = ("--data_dir", data_dir, "--output_dir", tmp_path)
    with pytest.raises(ValueError, match=r"(?s)5 problems:.*touchstone_en: is scored by a judge.*textvqa.*missing"):
        run("model", "--benchmarks", "docvqa_val", "textvqa_val", "touchstone_en", "--limit", 3, *flags)
    with pytest.raises(ValueError, match=r"http://host: the prompts of docvqa_val are raw.*--style chat"):
        run("http://host", "--benchmarks", "docvqa_val", *flags)
    with pytest.raises(ValueError, match=r"textvqa_val: .*is missing"):
        run("--check", "--benchmarks", "docvqa_val", "textvqa_val", *flags)
    run("--check", "--benchmarks", *NAMES, *flags)
    wrong = (
        ((), "name a model.*name benchmarks"),
        (("m", "--stage", "score"), "name none"),
        (("m", "--benchmarks", "x", "--rank", "--generate"), "choose one"),
        (("m", "--benchmarks", "x"), "'x' is not known"),
        (("m", "--benchmarks", "x", "--shots", "-1"), "--shots -1: use a number from 0"),
        (("m", "--benchmarks", "x", "--worst", "-1"), "--worst -1: use a number from 0"),
        (("a", "b", "--label", "c", "--benchmarks", "x"), "one model"),
    )
    for words, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            run(*words)


def test_a_server_is_evaluated_and_judged(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of the judge")
    with serving(lambda path, body: completion("b c")) as (address, server):
        flags = ("--data_dir", data_dir, "--output_dir", tmp_path, "--style", "chat", "--server_model", "org/tiny")
        run(address, "--benchmarks", "docvqa_val", *flags, "--api_key", "k")
    assert set(server.keys) == {"Bearer k"} and len(server.requests) == 9
    assert scores_of(tmp_path)["docvqa_val+chat"]["figures"]["ANLS"]["value"] == 100


def test_touchstone_is_judged(make_checkpoint, data_dir, tmp_path, capsys, monkeypatch):
    """A judge that refuses ends it with one error and keeps the answers; then it is asked twice a record, and once."""
    image = base64.b64encode((IMAGES / "train_00.jpg").read_bytes()).decode()
    head = ("index", "image", "question", "human_annotation", "gpt4_ha_answer", "category", "task_name")
    rows = [("0", image, "What?", "A shape.", "A dog.", "a,b", "t"), ("1", image, "Why?", "So.", "Yes.", "b", "t")]
    path = data_dir / "data/touchstone/touchstone_20230831.tsv"
    path.parent.mkdir()
    path.write_text("".join("\t".join(row) + "\n" for row in (head, *rows)))
    flags = ["--benchmarks", "touchstone_en", "--data_dir", data_dir, "--output_dir", tmp_path]
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving(lambda path, body: (401, "no")) as (address, _):
        asked = (make_checkpoint(), *flags, "--max_new_tokens", 4, "--judge_url", address, "--judge_model", "j")
        with pytest.raises(OSError, match="answers 401"):
            run(*asked, "--device", "cpu")
    assert len(answers_of(tmp_path)["touchstone_en+max4"].splitlines()) == 2 and not scores_of(tmp_path)
    with serving(lambda path, body: completion("8 6\nbecause")) as (address, server):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        for _ in range(2):
            run("--stage", "score", *flags, "--judge_model", "j")
        assert len(server.requests) == 4 and set(server.keys) == {"Bearer k"}
    (scores,) = scores_of(tmp_path).values()
    figures = {name: (figure["value"], figure["count"]) for name, figure in scores["figures"].items()}
    assert figures == {"score": (700, 2), "category/a": (700, 1), "category/b": (700, 2)}
    assert scores["settings"]["judge"] == "j"
    assert capsys.readouterr().out.endswith("score 700.00 [data files: 2 records, published: 908]\n")


def test_the_registry_is_listed(capsys):
    run("--list")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 40 and any(line.startswith("docvqa_val ") and "ANLS" in line for line in lines)
