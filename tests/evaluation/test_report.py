"""The report of a results folder in its four forms: exact numbers, marks, hostile texts, missing images, its bound."""

import base64
import csv
import html.parser
import io
import json
import re
from dataclasses import replace

import pytest
from helpers.evaluations import IDENTITY, MEAN, RANKED, SQUARES, FakeModel, png, write_data
from helpers.scored import HOSTILE, figure, sample, write_run
from PIL import Image

from qwen_vl.evaluation import report, report_page, suite, worst
from qwen_vl.evaluation.benchmarks import BENCHMARKS
from qwen_vl.evaluation.records import ImageSource
from qwen_vl.evaluation.runner import ModelSource
from qwen_vl.evaluation.suite import Request
from qwen_vl.evaluation.tasks import Overrides, Subset

FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


class Tags(html.parser.HTMLParser):
    """All start tags of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def texts(results):
    """Write the report; return {suffix: text}."""
    return {path.suffix[1:]: path.read_text(encoding="utf-8") for path in report.write(results)}


def test_numbers_beside_those_of_the_models_kind(tmp_path):
    """Base and chat are told apart by the model, not by its name; the half interval of an error of 1 is 1.96."""
    write_run(tmp_path, label="Qwen-VL-Chat-base", is_chat=False)
    write_run(tmp_path, label="mine", is_chat=True, published_note="from a paper")
    found = texts(tmp_path)
    assert sorted(found) == ["csv", "html", "json", "md"]
    assert "61.00 \u00b1 1.96 (published 63.80, -2.80)" in found["md"]
    assert "61.00 \u00b1 1.96 (published 61.50\\*, -0.50)" in found["md"] and "squares: from a paper" in found["md"]
    assert 'published 61.50* <span class="down">-0.50</span>' in found["html"]
    rows = list(csv.DictReader(io.StringIO(found["csv"])))
    assert tuple(rows[0]) == report.CSV_COLUMNS and len(rows) == 4
    assert [(row["model"], row["figure"], row["published"], row["is_headline"]) for row in rows] == [
        *(("Qwen-VL-Chat-base", "accuracy", "63.8", "1"), ("Qwen-VL-Chat-base", "rest", "0.25", "0")),
        *(("mine", "accuracy", "61.5", "1"), ("mine", "rest", "", "0")),
    ]
    assert [float(row["difference"]) for row in rows[:3]] == pytest.approx([-2.8, 0.25, -0.5])
    first = json.loads(found["json"])["runs"][0]
    assert first["figures"]["rest"]["difference"] == 0.25 and first["published_model"] == "Qwen-VL"
    assert "0.5000" in found["md"] and "a note" in found["md"] and "a note" in found["html"]


def test_every_output_marks_subsets_and_changes(tmp_path):
    settings = {"seed": 3, "complete_size": 5000, "variant": "published", "judge": "a judge", "style": "chat"}
    counts = {"records": 50, "answered": 48, "unanswered": 2, "unmatched": 0, "unreadable_images": 2}
    changes = {"subset": True, "incomplete": True, "counts": counts, "settings": settings, "benchmark": "squares"}
    unanswered = sample("lost", None, extra={"error": "image gone.png: cannot be decoded"})
    write_run(tmp_path, "squares+chat+4shot+limit50+seed3", samples=[unanswered], **changes)
    write_run(tmp_path, "whole", label="other")
    found = texts(tmp_path)
    marks = ["subset: 50 of 5,000 records, seed 3", "incomplete: 2 of 50 unanswered", "changed: chat, 4shot"]
    marks += ["variant: published", "judge: a judge"]
    content = json.loads(found["json"])
    assert content["subset"] and content["runs"][0]["marks"] == marks and content["runs"][1]["marks"] == []
    for form in ("md", "html"):
        assert all(mark in found[form] for mark in [*marks, "random subset (--limit)"]), form
        assert "unanswered: lost: image gone.png" in found[form]
    rows = list(csv.DictReader(io.StringIO(found["csv"])))
    assert [row["subset"] + row["incomplete"] for row in rows] == ["11", "11", "00", "00"]
    assert rows[0]["changes"] == "chat 4shot"


def test_hostile_texts_stay_texts(tmp_path):
    texts_of = dict.fromkeys(("question", "answer", "scored"), HOSTILE)
    hostile = sample(HOSTILE[:-3], **texts_of, answers=[HOSTILE], options=[HOSTILE], extra={HOSTILE: 1, "losses": [2]})
    run = {"title": HOSTILE, "notes": [HOSTILE], "metric": HOSTILE, "published_note": HOSTILE}
    run |= {"figures": {"accuracy": figure(1.0), HOSTILE: figure(2.0)}, "settings": {"template": HOSTILE, HOSTILE: "x"}}
    broken = json.loads(json.dumps(hostile).replace("\\ud800", ""))  # files are UTF-8, which has none
    run = json.loads(json.dumps(run).replace("\\ud800", ""))
    write_run(tmp_path, samples=[broken], label="=m" + HOSTILE[:20].replace("/", ""), **run)
    found = texts(tmp_path)
    page = Tags(found["html"])
    assert not FORBIDDEN.search(found["html"]) and not FORBIDDEN.search(found["md"])
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "link", "base", "form", "foreignobject"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 12 and "<U+202E>" in page.text
    assert "<script" not in found["md"] and "<img" not in found["md"]
    assert all(row["model"].startswith("'=m") for row in csv.DictReader(io.StringIO(found["csv"])))


def test_the_page_needs_no_network(tmp_path):
    write_run(tmp_path, samples=[sample()], images=[ImageSource.from_bytes("row 7", png("red"))])
    found = texts(tmp_path)
    sources = [a["src"] for _, a in Tags(found["html"]).tags if "src" in a]
    assert len(sources) == 1 and sources[0].startswith("data:image/jpeg;base64,")
    assert not re.search(r"https?:|url\(|@import", found["html"]) and "default-src 'none'" in found["html"]
    assert all(a["href"].startswith("#") for _, a in Tags(found["html"]).tags if "href" in a)


def test_boxes_are_drawn_over_the_last_image(tmp_path):
    image = Image.new("RGB", (1000, 500))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    images = [ImageSource.from_bytes("1", png("red")), ImageSource.from_bytes("2", stream.getvalue())]
    pixels = sample("p", boxes={"right": [[10, 20, 110, 220]], "predicted": [[900, 400, 700, 900]]})
    grid = sample("g", extra={"boxes_in_grid": {"right": [[0, 0, 499, 999]], "predicted": []}})
    folder = write_run(tmp_path, samples=[pixels, grid], images=images)
    page = texts(tmp_path)["html"]
    assert page.count("<svg ") == 2 and page.count('viewBox="0 0 1000 500"') == 2
    assert '<rect class="right" x="10.0" y="20.0" width="100.0" height="200.0"/>' in page
    # Corners in the wrong order, and below the image: what can be seen of it is drawn.
    assert '<rect class="predicted" x="700.0" y="400.0" width="200.0" height="100.0"/>' in page
    assert '<rect class="right" x="0.5" y="0.2" width="499.0" height="499.5"/>' in page
    assert 'width="320" height="160"' in page and page.count('class="key right"') == 2
    kept = json.loads((folder / "worst.json").read_text())
    assert kept["without_box"] == 1
    small = Image.open(io.BytesIO(base64.b64decode(kept["samples"][0]["shown"][1]["jpeg"])))
    assert small.size == (320, 160)
    assert next(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))["without_box"] == "1"


def test_an_image_that_cannot_be_read_is_said(tmp_path):
    gone = ImageSource.from_file(tmp_path / "gone.png")
    broken = ImageSource.from_bytes("row 3", b"no image")
    write_run(tmp_path, samples=[sample()], images=[*[gone] * 4, broken])
    page = Tags(texts(tmp_path)["html"])
    assert page.text.count("no image: ") == worst.MAX_IMAGES and "row 3" in page.text
    assert "1 earlier images are not shown" in page.text and not [tag for tag, _ in page.tags if tag == "img"]


def test_the_worst_samples(tmp_path):
    scores = {"full": 1.0, "half": 0.5, "zero": 0.0, "lost": None, "none": 0.0}
    samples = [sample(id, score, unmatched=id == "none") for id, score in scores.items() if score is not None]
    assert [line["id"] for line in worst.choose(samples, 9)] == ["none", "zero", "half"]
    assert [line["id"] for line in worst.choose(reversed(samples), 2)] == ["none", "zero"]
    ties = [sample(str(number)) for number in range(100)]
    chosen = [line["id"] for line in worst.choose(ties, 12)]
    assert len(chosen) == 12 and chosen == [line["id"] for line in worst.choose(ties[::-1], 12)]
    assert max(map(int, chosen)) > 40  # not the first ones of the file
    points = [sample("a", 150.0), sample("b", 20.0)]
    assert [line["id"] for line in worst.choose(points, 5)] == ["b", "a"]  # of no share can a full score be told


def test_the_page_is_bounded(tmp_path, monkeypatch):
    """Each run has the same share; a sample is shown without its image before it is left out."""
    noise = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(noise, "PNG")
    images = [ImageSource.from_bytes("n", noise.getvalue())]
    samples = [sample(str(number), question="<&>\u202e" * 10**5, answers=["x" * 9000] * 500) for number in range(20)]
    for run in ("one", "two"):
        write_run(tmp_path, run, samples=samples, images=images)
    page = texts(tmp_path)["html"]
    assert page.count("<article>") == 24 and page.count("<img ") == 24 and len(page) < 4_000_000
    monkeypatch.setattr(report_page, "MAX_SAMPLES", 400_000)
    page = texts(tmp_path)["html"]
    one, two = (part.count("<article>") for part in page.split('id="run-1"'))
    assert one == two > 1
    assert page.count("<img ") < page.count("<article>") < 24
    assert "image left out" in page and "left out, the page would become too large" in page
    assert len(page.encode()) < 400_000 + 30_000


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """Return the results folder of two models with the same label, evaluated as a command does it."""
    for benchmark in (SQUARES, RANKED, MEAN):
        monkeypatch.setitem(BENCHMARKS, benchmark.name, benchmark)
    write_data(tmp_path / "data")
    request = Request(names=["squares_mean"], data_dir=tmp_path / "data")
    models = [FakeModel(), FakeModel(replace(IDENTITY, fingerprint="f" * 64))]
    sources = [ModelSource(model.identity, lambda model=model: model) for model in models]
    for asked in (request, replace(request, overrides=Overrides(style="chat"), subset=Subset(6))):
        calls = [lambda source=source: source for source in sources]
        suite.answer_all(suite.tasks_of(asked), calls, tmp_path / "results", batch_size=8, report=str)
    list(suite.score_all(tmp_path / "results", Request(data_dir=tmp_path / "data")))
    return tmp_path / "results"


def test_several_models_and_runs_add_up_to_one_report(answered):
    found = texts(answered)
    content = json.loads(found["json"])
    assert len(content["models"]) == 2 and len(content["runs"]) == 12
    lines = found["md"].splitlines()
    (head,) = [line for line in lines if line.startswith("| benchmark")]
    assert "fake (fake-01234567)" in head and "fake (fake-ffffffff)" in head
    assert sum(line.startswith("| Squares") for line in lines) == 6  # rows of the first table
    assert "subset: 12 of 24 records" in found["md"] and "subset: 6 of 12 records" in found["md"]
    assert found["html"].count("<h2 ") == 6 and found["html"].count('class="warning"') == 1
    assert (answered / "fake-01234567/squares/worst.json").is_file()
    ranked = json.loads((answered / "fake-01234567/squares_ranked/worst.json").read_text())["samples"]
    assert ranked and all("shown" in line and len(line["extra"]["losses"]) == 3 for line in ranked)


def test_a_folder_without_scores(tmp_path):
    with pytest.raises(ValueError, match="no scores to report; run the stage score first"):
        report.write(tmp_path)
    folder = write_run(tmp_path)
    (folder / "scores.json").write_text("{}")
    with pytest.raises(ValueError, match=r"scores\.json: no scores of an evaluation"):
        report.write(tmp_path)
    (folder / "samples.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl:1: no sample of an evaluation"):
        list(worst.read_samples(folder))
