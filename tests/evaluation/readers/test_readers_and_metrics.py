"""Records of tables and of data sets have what the metrics want: the accepted answers score the maximum."""

import base64
import csv
import io

import pytest
from datasets import Dataset
from PIL import Image

from qwen_vl.evaluation.metrics import grounding, mmbench, mme, ocrbench, vqa, yes_no
from qwen_vl.evaluation.metrics.choice import CHOICE, SEED_BENCH
from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.readers import hugging_face, tsv
from qwen_vl.evaluation.records import Answer

OPTIONS = {"A": "None", "B": "NA"}
HALLUSION = {"category": "VD", "subcategory": "map", "set_id": "0", "figure_id": "1", "question_id": "2"}


def png(number):
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def pairs_of(records, answers=None):
    said = answers or [record.answers[0] for record in records]
    return [Pair(record, Answer(record.id, "key", text=text)) for record, text in zip(records, said, strict=True)]


@pytest.mark.parametrize(
    ("reader", "metric", "rows", "best"),
    [
        (
            tsv.mmbench,
            mmbench.MMBENCH,
            [{"index": 1, **OPTIONS, "answer": "B"}, {"index": 1000001, **OPTIONS, "answer": "A"}],
            100,
        ),
        (tsv.read, CHOICE, [{"index": 1, **OPTIONS, "answer": "B"}, {"index": "x", "answer": "['6', 'six']"}], 100),
        (
            tsv.read,
            mme.MME,
            [{"index": n, "answer": said, "category": "OCR"} for n, said in enumerate(("Yes", "No"))],
            200,
        ),
        (tsv.ocr_bench, ocrbench.OCRBENCH, [{"index": 1, "answer": "['x', 'y']", "category": "Regular"}], 1),
        (tsv.pope, yes_no.POPE, [{"index": 1, "answer": "yes", "category": "random,popular"}], 100),
        (
            tsv.hallusion_bench,
            yes_no.HALLUSION,
            [{"index": "a_b_c_0_1_2", "answer": "No", "category": "VD", "l2-category": "map"}],
            100,
        ),
    ],
)
def test_tables(tmp_path, reader, metric, rows, best):
    path = tmp_path / "table.tsv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, ["image", "question", *columns], delimiter="\t")
        writer.writeheader()
        writer.writerows({"image": base64.b64encode(png(0)).decode(), "question": "q", **row} for row in rows)
    result = metric.score(pairs_of(reader({"records": path})))
    assert result.figures[result.headline].value == best


@pytest.mark.parametrize(
    ("reader", "metric", "row", "best"),
    [
        (hugging_face.vqa, vqa.VQA_ACCURACY, {"question_id": 1, "answers": ["yes"] * 10, "question_type": "is"}, 100),
        (
            hugging_face.choice,
            CHOICE,
            {"choices": ["x", "y"], "answer": 1, "hint": "", "subject": "s", "grade": "grade7"},
            100,
        ),
        (
            hugging_face.choice,
            SEED_BENCH,
            {"question_id": "1", "question_type_id": 1, "data_type": "image", "choice_a": "x", "answer": "A"},
            100,
        ),
        (hugging_face.mmbench, mmbench.MMBENCH, {"index": 1, **OPTIONS, "answer": "B", "L2-category": "x"}, 100),
        (hugging_face.mme, mme.MME, {"question_id": "OCR/1.png", "answer": "Yes", "category": "OCR"}, 200),
        (hugging_face.pope, yes_no.POPE, {"question_id": "1", "answer": "yes", "category": "random"}, 100),
        (hugging_face.hallusion_bench, yes_no.HALLUSION, {**HALLUSION, "gt_answer": "1"}, 100),
        (
            hugging_face.ocr_bench,
            ocrbench.OCRBENCH,
            {"answer": ["x"], "question_type": "Regular", "dataset": "HME100k"},
            1,
        ),
    ],
)
def test_data_sets(tmp_path, reader, metric, row, best):
    path = tmp_path / "rows.parquet"
    Dataset.from_list([{"image": png(0), "question": "q", **row}]).to_parquet(path)
    result = metric.score(pairs_of(reader({"records": path})))
    assert result.figures[result.headline].value == best


def test_boxes_of_data_sets(tmp_path):
    path = tmp_path / "test.parquet"
    row = {"question_id": "1", "image": png(0), "answer": ["a", "b"], "bbox": [10.0, 15.0, 20.0, 15.0]}
    Dataset.from_list([row]).to_parquet(path)
    pairs = pairs_of(hugging_face.grounding({"records": path}, split="test"), ["(250,500),(749,999)", "(0,0),(9,9)"])
    assert [sample.score for sample in grounding.GROUNDING.score(pairs).samples] == [1, 0]
