"""Benchmarks read from the folders and files that their authors distribute: MME, POPE, HallusionBench, OCRBench."""

import json
import shutil

import pytest
from PIL import Image

from qwen_vl.evaluation.readers import json_files, mme_folder


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def mme(tmp_path):
    """Return an MME folder with one image for each subtask."""
    for subtask in mme_folder.BESIDE:
        image(tmp_path / subtask / "1.jpg")
        (tmp_path / subtask / "1.txt").write_text("Is it?\tYes\nIs\tit not?\tNo\n")
    for subtask in mme_folder.APART:
        image(tmp_path / subtask / "images" / ("toy_dataset" if subtask == "artwork" else "") / "1.png")
        (tmp_path / subtask / "questions_answers_YN").mkdir()
        (tmp_path / subtask / "questions_answers_YN" / "1.txt").write_text("Is it?\tYes\r\nIs it not?\tNo")
    return tmp_path


def test_mme_has_fourteen_subtasks(mme):
    records = mme_folder.read({"root": mme, "records": mme})
    assert len(records) == 28 and len({record.id for record in records}) == 28
    assert [record.answers[0] for record in records[:2]] == ["Yes", "No"]
    assert records[1].question == "Is\tit not?" and len({record.cluster for record in records}) == 14
    assert all(record.images[0].open().size == (4, 4) for record in records)
    assert {record.fields["category"] for record in records} == {*mme_folder.BESIDE, *mme_folder.APART}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: shutil.rmtree(root / "scene"), "scene/questions_answers_YN: has no .txt file"),
        (lambda root: (root / "count" / "1.jpg").unlink(), "1.txt has no image 1.jpg"),
        (lambda root: (root / "count" / "1.txt").write_text("Is it?\tYes\n"), "1.txt: has 1 questions, not 2"),
        (
            lambda root: (root / "count" / "1.txt").write_text("a\tYes\nb Yes\n"),
            r"1.txt:2: 'b Yes'; use QUESTION, a tab",
        ),
    ],
)
def test_a_damaged_mme_folder_is_named(mme, damage, message):
    damage(mme)
    with pytest.raises(ValueError, match=message):
        mme_folder.read({"root": mme, "records": mme})


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pope_has_three_splits_with_ids_of_their_own(tmp_path):
    image(tmp_path / "val2014" / "a.jpg")
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"}
    files = {split: lines(tmp_path / f"{split}.json", [row]) for split in json_files.POPE_SPLITS}
    files |= {"root": tmp_path, "images": tmp_path / "val2014"}
    records = json_files.pope(files)
    assert [record.id for record in records] == ["random/1", "popular/1", "adversarial/1"]
    assert records[1].answers == ("no",) and records[1].fields == {"split": "popular", "question_id": 1}
    lines(tmp_path / "popular.json", [row | {"label": "none"}])
    with pytest.raises(ValueError, match=r"popular.json:1: label: 'none'; use yes or no"):
        json_files.pope(files)


def test_hallusion_bench_asks_about_images_only(tmp_path):
    image(tmp_path / "hallusion_bench" / "VD" / "0_1.png")
    row = {"category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": "1"}
    row |= {"question_id": "0", "question": "q?", "gt_answer": "1", "filename": "./hallusion_bench/VD/0_1.png"}
    rows = [row, row | {"visual_input": "0", "figure_id": "0", "filename": None}]
    path = tmp_path / "hallusion_bench" / "HallusionBench.json"
    path.write_text(json.dumps(rows))
    (record,) = json_files.hallusion_bench({"root": tmp_path, "records": path})
    assert record.answers == ("yes",) and record.id == "VD/illusion/0/1/0"
    assert record.fields["set_id"] == "0" and record.fields["figure_id"] == "1"
    path.write_text(json.dumps([row | {"gt_answer": "yes"}]))
    with pytest.raises(ValueError, match=r"\[0\]: gt_answer: 'yes'; use 0 or 1"):
        json_files.hallusion_bench({"root": tmp_path, "records": path})


def test_ocrbench_accepts_one_answer_or_several(tmp_path):
    image(tmp_path / "OCRBench_Images" / "IIIT5K" / "a.png")
    row = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "image_path": "IIIT5K/a.png"}
    rows = [row | {"question": "q", "answers": ["a", "b"]}, row | {"question": "q", "answers": "NA"}]
    path = tmp_path / "OCRBench.json"
    path.write_text(json.dumps(rows))
    records = json_files.ocrbench({"root": tmp_path, "records": path, "images": tmp_path / "OCRBench_Images"})
    assert [record.answers for record in records] == [("a", "b"), ("NA",)]
    assert records[0].fields == {"type": "Regular Text Recognition", "dataset": "IIIT5K"}
