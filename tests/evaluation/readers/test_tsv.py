"""Tables with base64 images: every text survives, images are read when asked, and damage is named."""

import base64
import csv
import functools
import io
from pathlib import Path

import pytest
from PIL import Image

from qwen_vl.evaluation.readers import tsv

CHOICE = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "split")


@functools.cache  # of noise, which is another one at every call
def encoded(color, form="PNG", size=(30, 20)):
    stream = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").point(lambda level: (level + color) % 256).save(stream, form)
    return stream.getvalue()


def base64_of(content):
    return base64.b64encode(content).decode()


def write(path, rows, columns=None, **settings):
    with open(path, "w", encoding=settings.pop("encoding", "utf-8"), newline="") as file:
        writer = csv.DictWriter(file, columns or rows[0].keys(), delimiter="\t", lineterminator="\n", **settings)
        writer.writeheader()
        writer.writerows(rows)
    return {"records": path}


def question(index, image, **others):
    return {
        "index": index,
        "question": f"Question {index}?",
        "image": image,
        "answer": "A",
        "A": "x",
        "B": "y",
        **others,
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Some.tsv"


def test_a_choice_table_keeps_every_text_and_reads_images_when_asked(path):
    png, jpeg = encoded(10), encoded(90, "JPEG", (400, 400))
    assert len(base64_of(jpeg)) > 20_000
    rows = [
        question(
            "3.0", base64_of(png), A="None", B="NA", C="null", D="nan", answer="C", hint='He said "no"\n\tand left'
        ),
        question("4", base64_of(jpeg), A="1", B="", C=" two ", D="", answer="C", category="x", **{"l2-category": "y"}),
        question("1000003", "3", A="NA", B="null", C="nan", D="None", answer="['b']"),
        question("5", base64_of(png), answer=""),
    ]
    records = tsv.mmbench(write(path, rows, CHOICE))
    assert [record.id for record in records] == ["3", "4", "1000003", "5"]
    assert records[0].options == ("None", "NA", "null", "nan") and records[0].answers == ("C",)
    assert records[0].hint == 'He said "no"\n\tand left' and records[0].question == "Question 3.0?"
    assert records[1].options == ("1", " two ") and records[1].answers == ("B",)  # its place among the options
    assert records[1].fields["answer"] == "C"
    assert records[1].fields["category"] == "x" and records[1].fields["l2-category"] == "y"
    assert records[2].answers == ("B",) and records[3].answers == ()
    assert "image" not in records[0].fields and list(records[0].fields) == [name for name in CHOICE if name != "image"]
    assert [record.images[0].read() for record in records] == [png, jpeg, png, png]
    names = [record.images[0].name for record in records]
    assert names == ["Some.tsv:3", "Some.tsv:4", "Some.tsv:3", "Some.tsv:3"]  # one name for the same bytes
    assert records[1].images[0].open().size == (400, 400)


def test_several_images_as_a_literal_and_answers_as_a_list(path):
    one, two, tiny = encoded(1), encoded(2), encoded(0, "GIF", (1, 1))
    cell = str([base64_of(one), base64_of(two)])
    rows = [
        {"index": "validation_Art_1", "image": cell, "question": "<image 1>?", "answer": "['$6,000', '6000', 'six']"},
        {"index": "b", "image": base64_of(two), "question": "q", "answer": "[0, 1)"},
        {"index": "c", "image": "validation_Art_1", "question": "q", "answer": "[__import__('os').getcwd()]"},
        {"index": "d", "image": base64_of(tiny), "question": "q", "answer": "['It is', 2.5]"},
    ]
    first, second, third, fourth = tsv.read(write(path, rows))
    assert first.answers == ("$6,000", "6000", "six") and first.options == ()
    assert [image.read() for image in first.images] == [one, two]
    assert [image.name for image in first.images] == ["Some.tsv:validation_Art_1", "Some.tsv:validation_Art_1#2"]
    assert second.images[0] is first.images[1]
    assert third.images == first.images
    assert second.answers == ("[0, 1)",) and third.answers == ("[__import__('os').getcwd()]",)  # text, never run
    assert fourth.answers == ("It is", "2.5") and fourth.images[0].read() == tiny


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_marks_line_ends_quotes_and_short_rows_of_other_programs(path, ending):
    image = base64_of(encoded(7))
    wrapped = base64.encodebytes(encoded(8)).decode().strip().replace("\n", ending)
    lines = [
        "index\tquestion\timage\tanswer\tcomment\t",
        f'1\t"two{ending}lines, ""quoted"""\t{image}\tyes\tc\t',
        "",
        f'2\t5" wide?\tdata:image/png;base64,{image}\tno',  # the empty cells at the end are left out
        "\t\t\t\t\t",
        f'3\tq\t"{wrapped}"\tno\t\t',
    ]
    path.write_bytes(("\ufeff" + ending.join(lines) + ending).encode())
    first, second, third = tsv.read({"records": path})
    assert first.question == f'two{ending}lines, "quoted"' and first.id == "1" and first.fields["comment"] == "c"
    assert second.question == '5" wide?' and second.answers == ("no",) and second.fields["comment"] == ""
    assert second.images[0] is first.images[0]
    assert third.images[0].read() == encoded(8)


def test_images_in_files(tmp_path, path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encoded(3))
    rows = [{"index": 1, "image_path": "images/a.png", "question": "q"}]
    (record,) = tsv.read(write(path, rows))
    assert record.images[0].read() == (folder / "a.png").read_bytes()
    rows = [{"index": 1, "image_path": "['a.png', 'b.png']", "question": "q"}]
    (record,) = tsv.read({**write(path, rows), "images": folder})
    assert [Path(image.name).name for image in record.images] == ["a.png", "b.png"]
    rows.append({"index": 2, "image_path": "c.png", "question": "q"})
    with pytest.raises(ValueError, match=r"Some\.tsv:3, index 2, column image_path: .*c\.png is no file"):
        tsv.read({**write(path, rows), "images": folder})


PNG = encoded(5)
CUT_PNG = base64_of(PNG)[: len(base64_of(PNG)) // 8 * 4]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (question(2, CUT_PNG), r"Some\.tsv:3, index 2, column image: .*cut or damaged"),
        (question(2, CUT_PNG[:-1]), r"Some\.tsv:3, index 2, column image: .*no whole base64"),
        (question(2, CUT_PNG[:90] + "*" * 10), r"Some\.tsv:3, index 2, column image: .*no whole base64"),
        (question(2, base64_of(encoded(1, "JPEG", (200, 200))[:-300])), r"Some\.tsv:3, index 2, column image: .*cut"),
        (question(2, base64_of(encoded(1, "WEBP")[:-8])), r"Some\.tsv:3, index 2, column image: .*cut"),
        (question(2, base64_of(b"no image" * 20)), r"Some\.tsv:3, index 2, column image: .*no image of a known format"),
        (question(2, "7"), r"Some\.tsv:3, index 2, column image: '7' is neither an image nor the index"),
        (question(2, "2"), r"Some\.tsv:3, index 2, column image: '2' is neither"),
        (question(2, ""), r"Some\.tsv:3, index 2: has no image"),
        (question("1.0", base64_of(PNG)), r"Some\.tsv:3, index 1: line 2 has that index, too"),
        (question("", base64_of(PNG)), r"Some\.tsv:3, index \(none\), column index: is empty"),
        (question(2, base64_of(PNG), question=" "), r"Some\.tsv:3, index 2, column question: is empty"),
        (
            question(2, base64_of(PNG), answer="D"),
            r"Some\.tsv:3, index 2, column answer: 'D' is none of its options A, B",
        ),
    ],
)
def test_a_damaged_row_is_named(path, row, message):
    with pytest.raises(ValueError, match=message):
        tsv.read(write(path, [question(1, base64_of(PNG)), row]))


def test_all_problems_are_told_at_once(path):
    rows = [question(i, "x" * 100 + str(i)) for i in range(14)]
    with pytest.raises(ValueError, match=r"(?s)Some\.tsv:2, .*Some\.tsv:11, .*and 4 more") as error:
        tsv.read(write(path, rows))
    assert len(str(error.value).splitlines()) == 11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"Some\.tsv:1: no names of columns"),
        ("index\tquestion\timage\n", r"no rows"),
        ("index\tquestion\n1\tq\n", r"Some\.tsv:1: no column image or image_path; its columns are index, question"),
        ("question\timage\n1\tq\n", r"Some\.tsv:1: no column index"),
        ("index\tindex\timage\n1\tq\n", r"two columns 'index'"),
        ("index\tquestion\timage\n1\tq\tx\ty\n", r"Some\.tsv:2: 4 cells, but the first line names 3"),
        ("index\timage\tquestion\n1\tiVBOR", r"Some\.tsv:2: only 2 of 3 cells.*cut"),
        ('index\timage\tquestion\n1\t"iVBOR\tq\n2\tx\ty\n', r"Some\.tsv:2: only 2 of 3 cells.*not closed"),
        ("index\tquestion\timage\rx\ty\tz\r", r"Some\.tsv:1: cannot be split"),
        ("index\tquestion\timage\n1\tq\tx\n".encode("utf-16"), r"is UTF-16"),
        ("index\tquestion\timage\n1\té\tx\n".encode("latin-1"), r"Some\.tsv:2: byte 2 is not UTF-8"),
    ],
)
def test_a_damaged_table_is_named(path, content, message):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        tsv.read({"records": path})


def test_a_table_that_changes_during_the_run(path):
    (record,) = tsv.read(write(path, [question(1, base64_of(PNG))]))
    path.write_text("gone")
    with pytest.raises(OSError, match="not the file any more"):
        record.images[0].read()


def test_rotations_need_their_question(path):
    files = write(path, [question(1, base64_of(PNG)), question(2_000_002, base64_of(PNG))])
    with pytest.raises(ValueError, match="index 2000002: is a rotation of 2"):
        tsv.mmbench(files)


def test_pope_has_a_record_for_each_split_of_a_row_and_ocr_bench_a_type(path):
    rows = [
        {"index": 7, "image": base64_of(PNG), "question": "q", "answer": "yes", "category": "random,popular"},
        {"index": 8, "image": "7", "question": "q", "answer": "no", "category": "adversarial"},
    ]
    records = tsv.pope(write(path, rows))
    assert [record.id for record in records] == ["7/random", "7/popular", "8/adversarial"]
    assert [record.fields["split"] for record in records] == ["random", "popular", "adversarial"]
    assert [record.answers for record in records] == [("yes",), ("yes",), ("no",)]
    assert [record.fields["type"] for record in tsv.ocr_bench({"records": path})] == ["random,popular", "adversarial"]


def test_hallusion_bench_and_touchstone(path):
    image = base64_of(PNG)
    rows = [
        {"index": "hallu_VD_math_0_1_2", "image": image, "question": "q", "answer": "No", "category": "VD"},
        {"index": "hallu_VS_map_1_0_0", "image": "", "question": "q", "answer": "Yes", "category": "VS"},
        {"index": "hallu_VS_map_1_2_0", "image": image, "question": "q", "answer": "Yes", "l2-category": "map"},
    ]
    first, second = tsv.hallusion_bench(
        write(path, rows, ["index", "image", "question", "answer", "category", "l2-category"])
    )
    assert first.answers == ("No",) and first.fields["gt_answer"] == "0" and first.fields["category"] == "VD"
    assert [first.fields[name] for name in ("set_id", "figure_id", "question_id")] == ["0", "1", "2"]
    assert second.fields["subcategory"] == "map" and second.fields["gt_answer"] == "1"
    with pytest.raises(ValueError, match=r"Some\.tsv, index 7: needs an answer Yes or No"):
        tsv.hallusion_bench(write(path, [{"index": 7, "image": image, "question": "q", "answer": "Yes"}]))

    columns = dict.fromkeys(tsv.TOUCHSTONE_COLUMNS, "text")
    (record,) = tsv.touchstone(write(path, [{"index": 0, "image": image, "question": "q", **columns}]))
    assert record.answers == () and record.fields["human_annotation"] == "text"
    with pytest.raises(ValueError, match="no column human_annotation, gpt4_ha_answer"):
        tsv.touchstone(write(path, [{"index": 0, "image": image, "question": "q", "category": "c", "task_name": "t"}]))
