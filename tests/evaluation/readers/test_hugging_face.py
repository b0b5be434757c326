"""Local data sets of Hugging Face, written by the real `datasets`, in the layouts of lmms-lab."""

import functools
import io

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image
from pyarrow import parquet

from qwen_vl.data.sources import cells
from qwen_vl.evaluation.readers import hugging_face

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True, scope="module")
def _without_progress_bars():
    datasets.disable_progress_bars()


@functools.cache  # of noise, which is another one at every call
def png(number, size=(30, 20)):
    stream = io.BytesIO()
    Image.effect_noise(size, 50 + number).save(stream, "PNG")
    return stream.getvalue()


def table(rows, **image_columns):
    """Return a Dataset of rows; `image` and the given columns hold images."""
    found = Dataset.from_list(rows)
    for name, kind in {"image": datasets.Image(), **image_columns}.items():
        if name in found.column_names:
            found = found.cast_column(name, kind)
    return found


def image(number, path=None):
    return {"bytes": png(number), "path": path}


def save(found, folder, form, split):
    """Write a Dataset in one of the forms that users have on their disks."""
    if form == "saved":
        found.save_to_disk(folder)
    if form == "dict":
        DatasetDict({split: found, "other": found.select([0])}).save_to_disk(folder)
    if form == "parquet":
        (folder / "data").mkdir(parents=True)
        middle = max(len(found) // 2, 1)
        for number, part in enumerate((range(middle), range(middle, len(found)))):  # the second may be empty
            found.select(part).to_parquet(
                folder / "data" / f"{split}-{number:05}-of-00002-0123abcd.parquet", batch_size=2
            )
        found.select([0]).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    if form == "cache":
        folder.mkdir()
        with (
            pa.OSFile(str(folder / f"name-{split}.arrow"), "wb") as file,
            pa.ipc.new_stream(file, found.data.schema) as out,
        ):
            out.write_table(found.data.table.combine_chunks(), max_chunksize=2)
    return {"records": folder}


VQA = [
    {"question_id": 7, "image": image(1), "question": "Who?", "answers": ["None", "NA", "NA", "null", "4"]},
    {"question_id": 8, "image": image(2), "question": "N/A", "answers": []},
    {"question_id": 9, "image": image(1), "question": "Why?", "answers": ["a"] * 10},
]


@pytest.mark.parametrize("form", ["saved", "dict", "parquet", "cache"])
@pytest.mark.parametrize("split", ["validation", "val2014"])
def test_every_form_of_a_data_set(tmp_path, form, split):
    files = save(table(VQA), tmp_path / "textvqa", form, split)
    records = hugging_face.vqa(files, split=split)
    assert [record.id for record in records] == ["7", "8", "9"]
    assert [record.question for record in records] == ["Who?", "N/A", "Why?"]
    assert [record.answers for record in records] == [("None", "NA", "NA", "null", "4"), (), ("a",) * 10]
    assert [record.images[0].read() for record in records] == [png(1), png(2), png(1)]
    assert records[0].images[0] is records[2].images[0] and records[0].cluster != records[1].cluster
    assert records[0].fields == {"question_id": 7}


def test_large_row_groups_are_read_up_to_the_image(tmp_path, monkeypatch):
    rows = [{**VQA[0], "question_id": number, "image": image(number % 5)} for number in range(40)]
    path = tmp_path / "validation.parquet"
    table(rows).to_parquet(path, batch_size=25)
    monkeypatch.setattr(cells, "MAX_GROUP", 0)
    records = hugging_face.vqa({"records": path})
    assert [record.images[0].read() for record in records] == [png(number % 5) for number in range(40)]
    assert cells.cell(path, 39, "image")["bytes"] == png(4)


def test_vqa_answers_as_objects_and_docvqa_configs(tmp_path):
    answers = [{"answer": text, "answer_confidence": "yes", "answer_id": 1} for text in ("yes", "no")]
    row = {
        "question_id": 5,
        "image": image(1),
        "question": "q",
        "answers": answers,
        "question_type": "is",
        "answer_type": "y",
    }
    (record,) = hugging_face.vqa(save(table([row]), tmp_path / "vqav2", "saved", "validation"))
    assert record.answers == ("yes", "no")
    assert record.fields == {"question_id": 5, "question_type": "is", "answer_type": "y"}
    for config, text in (("DocVQA", "one"), ("InfographicVQA", "two")):
        (tmp_path / "DocVQA" / config).mkdir(parents=True)
        row = {"questionId": "49153", "image": image(2), "question": "q", "answers": [text, f"{text}."]}
        table([row]).to_parquet(tmp_path / "DocVQA" / config / "validation-00000-of-00001.parquet")
    (record,) = hugging_face.vqa({"records": tmp_path / "DocVQA"}, config="InfographicVQA")
    assert record.answers == ("two", "two.") and record.fields["question_id"] == record.id == "49153"
    with pytest.raises(ValueError, match="no folder 'en', only DocVQA, InfographicVQA"):
        hugging_face.vqa({"records": tmp_path / "DocVQA"}, config="en")
    with pytest.raises(ValueError, match="'validation' is in the folders DocVQA, InfographicVQA"):
        hugging_face.vqa({"records": tmp_path / "DocVQA"})


def test_chartqa_halves_and_gqa_with_two_configs(tmp_path):
    rows = [
        {"type": kind, "image": image(1), "question": kind, "answer": "3"} for kind in ("human_test", "augmented_test")
    ]
    files = save(table(rows), tmp_path / "chartqa", "saved", "test")
    (record,) = hugging_face.chartqa(files, kind="augmented_test")
    assert (record.question, record.answers, record.id) == ("augmented_test", ("3",), "1")

    rows = [{"id": f"q{n}", "imageId": "i1", "question": "q", "answer": "yes"} for n in range(2)]
    files = save(table(rows), tmp_path / "questions", "parquet", "testdev")
    images = save(
        table([{"id": "i0", "image": image(0)}, {"id": "i1", "image": image(1)}]), tmp_path / "images", "saved", ""
    )
    records = hugging_face.gqa({**files, "images": images["records"]})
    assert [record.id for record in records] == ["q0", "q1"] and records[1].images[0].read() == png(1)
    for config, found in (("instructions", rows), ("images", [{"id": "i1", "image": image(2)}])):  # as on the hub
        folder = tmp_path / "GQA" / f"testdev_balanced_{config}"
        folder.mkdir(parents=True)
        table(found).to_parquet(folder / "testdev-00000-of-00001.parquet")
    records = hugging_face.gqa({"records": tmp_path / "GQA", "images": tmp_path / "GQA"})
    assert [record.images[0].read() for record in records] == [png(2)] * 2
    rows[1]["imageId"] = "i7"
    files = save(table(rows), tmp_path / "wrong", "saved", "testdev")
    with pytest.raises(ValueError, match=r"\[1\]: imageId 'i7' is not in"):
        hugging_face.gqa({**files, "images": images["records"]})


def test_options_of_ai2d_science_qa_seed_bench_and_mmmu(tmp_path):
    one = {"image": image(1), "question": "q"}
    (record,) = hugging_face.choice(
        save(table([{**one, "options": ["NA", "None"], "answer": "1"}]), tmp_path / "a", "saved", "")
    )
    assert record.options == ("NA", "None") and record.answers == ("B",)
    science = {**one, "choices": ["x", "y"], "answer": 0, "hint": "", "subject": "natural science", "grade": "grade2"}
    (record,) = hugging_face.choice(save(table([science]), tmp_path / "s", "saved", ""))
    assert record.answers == ("A",) and record.fields["grade"] == "grade2"
    seed = {"question_id": "v1", "question_type_id": 10, "data_type": "video", "question": "q", "answer": "D"}
    seed |= {f"choice_{letter}": letter for letter in "abcd"} | {"image": [image(1), image(2)]}
    (record,) = hugging_face.choice(
        save(table([seed], image=datasets.List(datasets.Image())), tmp_path / "v", "saved", "")
    )
    assert (
        record.answers == ("D",) and record.options == ("a", "b", "c", "d") and record.fields["question_type_id"] == 10
    )
    assert [source.read() for source in record.images] == [png(1), png(2)]
    mmmu = [
        {
            "id": "m1",
            "question": "q",
            "options": "['None', '$5']",
            "answer": "B",
            "image_1": image(1),
            "image_2": image(2),
        },
        {"id": "m2", "question": "q", "options": "[]", "answer": "['1', 'one']", "image_1": image(1), "image_2": None},
    ]
    columns = {"image_1": datasets.Image(), "image_2": datasets.Image()}
    first, second = hugging_face.choice(save(table(mmmu, **columns), tmp_path / "m", "saved", "validation"))
    assert (
        first.options == ("None", "$5") and len(first.images) == 2 and second.options == () and len(second.images) == 1
    )
    assert second.answers == ("1", "one")
    wrong = {**one, "options": ["x", "y"], "answer": "2"}
    with pytest.raises(ValueError, match=r"\[0\]: answer: '2'; it must be the letter, or the place"):
        hugging_face.choice(save(table([wrong]), tmp_path / "w", "saved", ""))


def test_mmbench_loses_no_option(tmp_path):
    row = {
        "index": 3,
        "question": "q",
        "hint": "nan",
        "answer": "B",
        "image": image(1),
        "L2-category": "x",
        "category": "y",
    }
    rows = [
        {**row, "A": "None", "B": "NA", "C": "null", "D": "nan"},
        {**row, "index": 4, "A": "nan", "B": "1", "C": "nan", "D": "nan", "hint": "look", "answer": "A"},
    ]
    first, second = hugging_face.mmbench(save(table(rows), tmp_path / "m", "saved", "dev"))
    assert first.options == ("None", "NA", "null") and first.hint == "" and first.answers == ("B",)
    assert second.options == ("nan", "1") and second.hint == "look" and second.answers == ("A",)
    assert list(first.fields["row"]) == ["index", "question", "hint", "answer", "l2-category", "category", *"ABCD"]
    assert first.fields["index"] == 3 and first.fields["l2-category"] == "x"


def test_grounding_and_captions(tmp_path):
    row = {
        "question_id": "1",
        "image": image(1),
        "question": "?",
        "answer": ["the dog", "a dog"],
        "bbox": [3.0, 2.5, 10.0, 4.0],
    }
    rows = [row, {**row, "question_id": "2", "answer": ["cat"]}]
    records = hugging_face.grounding(save(table(rows), tmp_path / "r", "parquet", "testA"), split="testA")
    assert [(record.id, record.question) for record in records] == [
        ("1/0", "the dog"),
        ("1/1", "a dog"),
        ("2/0", "cat"),
    ]
    assert records[0].fields["bbox"] == [3.0, 2.5, 13.0, 6.5]
    assert (records[0].fields["width"], records[0].fields["height"]) == (30, 20)
    assert records[0].answers == ()

    row = {"image_id": 17, "image": image(1), "annotations_captions": ["NA", "a dog"]}
    (record,) = hugging_face.captions(save(table([row]), tmp_path / "n", "saved", ""), split="validation")
    assert record.id == "17" and record.answers == ("NA", "a dog") and record.fields == {"image_id": 17}
    rows = [
        {"img_id": str(n), "image": image(n), "caption": ["x"], "split": kind}
        for n, kind in enumerate(("train", "test"))
    ]
    (record,) = hugging_face.captions(save(table(rows), tmp_path / "f", "saved", ""))
    assert record.id == record.fields["image_id"] == "1"


def test_yes_and_no_and_ocr(tmp_path):
    row = {
        "question_id": "existence/1.png",
        "image": image(1),
        "question": "q",
        "answer": "Yes",
        "category": "existence",
    }
    records = hugging_face.mme(save(table([row, {**row, "answer": "No"}]), tmp_path / "m", "saved", ""))
    assert [record.id for record in records] == ["existence/1.png/1", "existence/1.png/2"]
    assert [record.answers for record in records] == [("Yes",), ("No",)] and records[0].fields["image_name"] == "1.png"
    rows = [{**row, "question_id": "1", "category": kind} for kind in ("random", "popular")]
    records = hugging_face.pope(save(table(rows), tmp_path / "p", "saved", ""))
    assert [(record.id, record.fields["split"]) for record in records] == [
        ("random/1", "random"),
        ("popular/1", "popular"),
    ]
    row = {**row, "gt_answer": "0", **dict.fromkeys(("subcategory", "set_id", "figure_id", "question_id"), "1")}
    rows = [row, {**row, "image": None, "figure_id": "0"}]
    (record,) = hugging_face.hallusion_bench(save(table(rows), tmp_path / "h", "saved", ""))
    assert record.answers == ("No",) and record.fields["gt_answer"] == "0"
    row = {
        "dataset": "IIIT5K",
        "question": "q",
        "question_type": "Regular",
        "answer": ["CENTRE", "center"],
        "image": image(1),
    }
    (record,) = hugging_face.ocr_bench(save(table([row]), tmp_path / "o", "saved", ""))
    assert record.answers == ("CENTRE", "center") and record.fields["type"] == "Regular"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([VQA[0], VQA[0]], r"\[1\]: id '7' was used at .*\[0\]"),
        ([{**VQA[0], "image": {"bytes": png(1)[:50], "path": None}}], r"\[0\]: image: 50 bytes.*cut or damaged"),
        ([{**VQA[0], "image": None}, VQA[1]], r"\[0\]: has no image"),
        ([{**VQA[0], "question": None}, VQA[1]], r"\[0\]: question: None; it must be a text"),
        (
            [{"question_id": 7, "image": image(1), "query": "q"}],
            r"no column question; its columns are question_id, query, image",
        ),
    ],
)
def test_a_damaged_row_is_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        hugging_face.vqa(save(table(rows), tmp_path / "d", "saved", "validation"))


def test_missing_splits_and_damaged_files_are_named(tmp_path):
    files = save(table(VQA), tmp_path / "d", "parquet", "dev")
    with pytest.raises(ValueError, match=r"has no split 'validation', only dev, train"):
        hugging_face.vqa(files)
    (tmp_path / "d" / "data" / "dev-00001-of-00002-0123abcd.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"dev-00000-of-00002-0123abcd\.parquet: of its 2 files, number 00001 is missing"
    ):
        hugging_face.vqa(files, split="dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no Parquet or Arrow files"):
        hugging_face.vqa({"records": tmp_path / "empty"})
    with pytest.raises(FileNotFoundError):
        hugging_face.vqa({"records": tmp_path / "nothing"})
    path = tmp_path / "validation.parquet"
    table(VQA).to_parquet(path)
    (record, *_) = hugging_face.vqa({"records": path})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"validation\.parquet: damaged"):
        hugging_face.vqa({"records": path})
    with pytest.raises(OSError, match="not the file any more"):
        record.images[0].read()
    pa_table = pa.table({"question": ["q"], "question_id": [1], "answers": [["a"]], "image": [png(1)]})
    parquet.write_table(pa_table, path)  # images as plain bytes
    (record,) = hugging_face.vqa({"records": path})
    assert record.images[0].read() == png(1)
    (tmp_path / "a.png").write_bytes(png(2))
    for name in ("a.png", "b.png"):  # beside the table
        pa_table = pa.table({"question": ["q"], "question_id": [1], "image": [{"bytes": None, "path": name}]})
        parquet.write_table(
            pa_table.cast(pa_table.schema.set(2, pa.field("image", IMAGE))), tmp_path / f"{name}.parquet"
        )
    (record,) = hugging_face.vqa({"records": tmp_path / "a.png.parquet"})
    assert record.images[0].read() == png(2)
    with pytest.raises(ValueError, match=r"\[0\]: image: no bytes, and 'b\.png' is no file"):
        hugging_face.vqa({"records": tmp_path / "b.png.parquet"})
