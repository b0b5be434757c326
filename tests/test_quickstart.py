"""The quickstart's parts on a dozen pictures: data, tiny model, answers, report, and the scripts that call them."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qwen_vl.data import chatml, conversations
from qwen_vl.evaluation.metrics import find_boxes
from qwen_vl.evaluation.runner import split
from qwen_vl.quickstart import data, evaluate, model
from qwen_vl.training import arguments

ROOT = Path(__file__).resolve().parents[1]
FILES = ("boxes", "full", "lora", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder of 12 pictures of each split."""
    out = tmp_path_factory.mktemp("data")
    data.build(out, limit=12)
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The checkpoint folder of the tiny model, with the model and its tokenizer."""
    out = tmp_path_factory.mktemp("tiny")
    return out, *model.build(ROOT / "configs/model/tiny.json", out)


def test_records_are_valid_and_fit_the_tiny_model(folder, tiny):
    _, net, tokenizer = tiny
    for name in FILES:
        for record in conversations.read(folder / f"{name}.json"):
            ids = chatml.encode(record, tokenizer)["input_ids"]
            assert max(ids) < net.config.vocab_size
            assert len(ids) < net.config.seq_length


def test_the_test_file_shows_test_pictures_alone(folder):
    for name, forbidden in (
        ("boxes", "<img>test/"),
        ("full", "<img>test/"),
        ("lora", "<img>test/"),
        ("test", "<img>train/"),
    ):
        assert forbidden not in (folder / f"{name}.json").read_text(encoding="utf-8")


def test_boxes_hold_the_shape_and_nothing_else(folder):
    """Every pixel far from the background's colour lies in the box, and reaches each of its sides."""
    seen = 0
    for record in conversations.read(folder / "test.json"):
        _, query, answer = split(record)
        if not record["id"].startswith("box-en/"):
            continue
        with Image.open(folder / query.partition("<img>")[2].partition("</img>")[0]) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        far = np.abs(pixels - values[counts.argmax()]).max(-1) > 90
        rows, columns = np.where(far.any(1))[0], np.where(far.any(0))[0]
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / 64 * 1000
        assert np.abs(edges - find_boxes(answer)[0]).max() <= 25, record  # a pixel is 15.6
        seen += 1
    assert seen == 12


@pytest.mark.parametrize("shape", ["circle", "rectangle", "triangle"])
def test_look_reads_color_shape_and_box_from_pixels(tmp_path, shape):
    picture = Image.new("RGB", (64, 64), (240, 250, 235))
    draw = ImageDraw.Draw(picture)
    if shape == "triangle":
        draw.polygon([(32, 16), (16, 47), (47, 47)], fill=data.PALETTE["teal"])
    else:
        (draw.ellipse if shape == "circle" else draw.rectangle)((16, 16, 47, 47), fill=data.PALETTE["teal"])
    picture.save(tmp_path / "one.png")
    color, found, box, _ = data.look(tmp_path / "one.png")
    assert (color, found, box) == ("teal", shape, (250, 250, 750, 750))


def test_pixels_agree_with_the_answers_of_easy_vqa(tmp_path):
    for scene in data.scenes("train", tmp_path, limit=200):
        said = {answer for _, answer in scene.questions} - {"yes", "no"}
        assert said <= {scene.color, scene.shape}, scene
        kinds = data.by_kind(scene)
        for subject, own in (("color", scene.color), ("shape", scene.shape)):
            asked = {
                kind: {data.THING.search(text)[1] for text, _ in kinds[f"{kind} {subject}"]}
                for kind in ("shown", "absent")
            }
            assert asked["shown"] <= {own} and own not in asked["absent"], scene


def test_every_question_of_easy_vqa_has_its_own_chinese():
    from easy_vqa import get_test_questions, get_train_questions

    questions = set(get_train_questions()[0]) | set(get_test_questions()[0])
    assert len({data.translate(question) for question in questions}) == len(questions) == 107
    assert data.translate("does the image not contain a red shape?") == "图片是否不包含红色图形？"
    assert data.translate("what is the color of the circle?") == "圆形的颜色是什么？"
    with pytest.raises(ValueError, match="easy-vqa"):
        data.translate("how many shapes?")


def test_tiny_model_answers_and_the_report_is_written(folder, tiny, tmp_path, capsys):
    base, _, _ = tiny
    test = tmp_path / "test.json"
    records = conversations.read(folder / "test.json")
    kept = {evaluate.group_of(record): record for record in records}
    test.write_text(json.dumps(list(kept.values())), encoding="utf-8")
    for split_name in ("train", "test"):
        (tmp_path / split_name).symlink_to(folder / split_name)
    history = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 1.5}, {"step": 20, "train_runtime": 4.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}), encoding="utf-8")
    stages = ["--stage", f"before={base}", "--curve", f"full={tmp_path}"]
    evaluate.main([str(test), str(tmp_path / "report"), *stages])
    assert (tmp_path / "report" / "loss.png").stat().st_size > 1000
    written = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert set(written["scores"]["before"]) == set(kept)
    assert "| box-zh | IoU >= 0.5 | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quickstart_boxes", "quickstart_full", "quickstart_lora"])
def test_shipped_training_configs_parse(name, tmp_path):
    argv = [str(ROOT / f"configs/train/{name}.yaml"), "--data_path", "x.json", "--output_dir", str(tmp_path)]
    *_, lora, training = arguments.parse(argv)
    assert training.use_lora == (name == "quickstart_lora")
    assert lora.lora_r > 0


def test_quickstart_script_is_posix_sh():
    subprocess.run(["sh", "-n", str(ROOT / "scripts/quickstart.sh")], check=True)


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
