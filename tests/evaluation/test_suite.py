"""The stages from files to figures, on real images, questions and tables, and on data as users have it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import easy_vqa
import pytest
from helpers.benchmark_files import PNG, write
from helpers.evaluations import FakeModel, png
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from vega_datasets import local_data

from qwen_vl.cli import evaluate
from qwen_vl.evaluation import suite
from qwen_vl.evaluation.answering import Said
from qwen_vl.evaluation.records import ImageSource
from qwen_vl.evaluation.runner import ModelSource

ROOT = Path(__file__).resolve().parents[2]


class Knowing(FakeModel):
    """Says what it is told, by prompt."""

    def say(self, prompt, decoding):
        return Said(text=self.known[prompt])


def figures_of(request, results, say):
    """Return {benchmark: scores} of a model that says say(record)."""
    model, tasks = Knowing(), suite.tasks_of(request)
    model.known = {
        prompt: say(record) for task in tasks for prompt, record in zip(task.prompts(), task.records, strict=True)
    }
    source = ModelSource(model.identity, lambda: model)
    suite.answer_all(tasks, [lambda: source], results, batch_size=8, report=lambda line: None)
    return {scores["benchmark"]: scores for scores in suite.score_all(results, request)}


def value(scores, name=None):
    return scores["figures"][name or scores["headline"]]["value"]


def first_answer(record):
    return record.answers[0]


def test_the_examples_of_the_repository(tmp_path):
    request = suite.Request(data=(str(ROOT / "data/examples/conversations.json"),))
    (scores,) = figures_of(request, tmp_path / "right", first_answer).values()
    whole = {name for name in scores["figures"] if not name.endswith(("without", "unmatched", "cider"))}
    assert {"score", "boxes_f1", "short_exact_match", "text_rouge_l"} <= whole
    assert {name: value(scores, name) for name in whole} == pytest.approx(dict.fromkeys(whole, 100))
    assert scores["counts"]["records"] == scores["counts"]["answered"] > 10
    (scores,) = figures_of(request, tmp_path / "empty", lambda record: "").values()
    assert value(scores, "score") == 0


@pytest.fixture(scope="module")
def easy_vqa_dir(tmp_path_factory):
    """Return a --data_dir with OK-VQA's official files of easy-vqa's questions about 4 images."""
    folder = tmp_path_factory.mktemp("easy_vqa") / "data"
    images, (texts, answers, owners) = easy_vqa.get_test_image_paths(), easy_vqa.get_test_questions()
    chosen = sorted(images)[:4]
    rows = [row for row in zip(texts, answers, owners, strict=True) if row[2] in chosen]
    (folder / "coco/val2014").mkdir(parents=True)
    for number in chosen:
        shutil.copy(images[number], folder / f"coco/val2014/COCO_val2014_{number:012}.jpg")
    common = [{"question_id": n, "image_id": owner} for n, (_, _, owner) in enumerate(rows)]
    asked = [one | {"question": text} for one, (text, _, _) in zip(common, rows, strict=True)]
    said = [
        one | {"answers": [{"answer_id": n, "answer": answer} for n in range(10)], "question_type": "is"}
        for one, (_, answer, _) in zip(common, rows, strict=True)
    ]
    write(folder / "okvqa/OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": asked})
    write(folder / "okvqa/mscoco_val2014_annotations.json", {"annotations": said})
    return folder.parent


def run(*words):
    evaluate.main([str(word) for word in (*words, "--device", "cpu")])


def answers_in(results):
    return {path.parent.name: path.read_bytes() for path in results.glob("*/*/answers.jsonl")}


def test_easy_vqa_in_the_form_of_vqa(easy_vqa_dir, make_checkpoint, tmp_path):
    request = suite.Request(names=("okvqa_val",), data_dir=easy_vqa_dir)
    scores = figures_of(request, tmp_path / "right", first_answer)["okvqa_val"]
    assert value(scores) == 100 and scores["counts"]["records"] > 20
    assert 0 < value(figures_of(request, tmp_path / "yes", lambda record: "yes")["okvqa_val"]) < 100
    assert value(figures_of(request, tmp_path / "Yes", lambda record: "Yes")["okvqa_val"]) == 0  # all answers agree
    said = {}
    for size in (1, 8, 32):
        flags = ("--benchmarks", "okvqa_val", "--data_dir", easy_vqa_dir, "--batch_size", size, "--stage", "answer")
        run(make_checkpoint(), *flags, "--output_dir", tmp_path / str(size))
        said[size] = answers_in(tmp_path / str(size))["okvqa_val"]
    assert said[1] == said[8] == said[32] and said[1].count(b"\n") == scores["counts"]["records"]


def draw_bars(values, path):
    """Write an image of bars with the heights of the values."""
    image = Image.new("RGB", (15 * len(values), 120), "white")
    for number, value in enumerate(values):
        height = 110 * value / max(values)
        ImageDraw.Draw(image).rectangle((15 * number, 120 - height, 15 * number + 11, 120), fill="steelblue")
    image.save(path)


def test_charts_of_real_tables(tmp_path):
    """Bars of wheat prices and miles driven; numbers 4% off are right, and the original exchanged both sides."""
    tables = {
        "human": local_data.wheat()[["year", "wheat"]].head(12),
        "augmented": local_data.driving()[["year", "miles"]].head(12),
    }
    for half, table in tables.items():
        path = tmp_path / f"data/chartqa/{half}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_bars(table.iloc[:, 1].tolist(), path)
        rows = [
            {"image": f"data/chartqa/{half}.png", "question": f"{table.columns[1]} in {year}?", "question_id": n}
            | {"answer": str(number)}
            for n, (year, number) in enumerate(table.itertuples(index=False))
        ]
        write(tmp_path / f"data/chartqa/test_{half}.jsonl", rows)
    request = suite.Request(names=("chartqa_test",), data_dir=tmp_path)
    off = {"wheat": 1.04, "miles": 1.052}

    def say(record):
        return str(float(record.answers[0]) * off[record.question.split()[0]])

    scores = figures_of(request, tmp_path / "results", say)
    assert [value(scores[f"chartqa_test_{half}"]) for half in tables] == [100, 0]
    assert value(scores["chartqa_test_augmented"], "relaxed accuracy as published") == 100
    assert value(scores["chartqa_test"]) == 50 and scores["chartqa_test"]["counts"]["records"] == 24
    stopped = figures_of(request, tmp_path / "stop", lambda record: f"{record.answers[0]}%.")
    assert value(stopped["chartqa_test"]) == 0


def test_captions_of_coco_in_the_form_of_nocaps(golden, tmp_path):
    recorded = golden("cider_coco80.json")
    images = [{"id": int(one["id"]), "image": f"data/nocaps/{one['id']}.png"} for one in recorded["pictures"]]
    notes = [
        {"image_id": int(one["id"]), "caption": caption}
        for one in recorded["pictures"]
        for caption in one["references"]
    ]
    notes = [note | {"id": number} for number, note in enumerate(notes)]
    write(tmp_path / "data/nocaps/nocaps_val.json", {"images": images, "annotations": notes})
    for image in images:
        (tmp_path / image["image"]).write_bytes(PNG.getvalue() + bytes(str(image["id"]), "ascii"))
    said = {int(one["id"]): one["prediction"] for one in recorded["pictures"]}
    request = suite.Request(names=("nocaps",), data_dir=tmp_path)
    scores = figures_of(request, tmp_path / "results", lambda record: said[int(record.fields["image_id"])])["nocaps"]
    assert value(scores) == pytest.approx(100 * recorded["cider"], abs=1e-6)
    limited = replace(request, subset=suite.Subset(9))
    figures_of(limited, tmp_path / "limited", lambda record: said[int(record.fields["image_id"])])
    expected = {str(int(one["id"])): one["cider"] for one in recorded["pictures"]}
    (samples,) = tmp_path.glob("limited/*/nocaps+limit9/samples.jsonl")
    found = {row["id"]: row["score"] for row in map(json.loads, samples.read_text().splitlines())}
    assert len(found) == 9 and found == pytest.approx({id: expected[id] for id in found}, abs=1e-9)
    (submission,) = tmp_path.glob("results/*/nocaps/captions.json")
    assert {row["image_id"]: row["caption"] for row in json.loads(submission.read_text())} == said


def talk(name, *turns, **fields):
    speakers = ("user", "assistant") * len(turns)
    turns = [{"from": speaker, "value": text} for speaker, text in zip(speakers, turns, strict=False)]
    return {"id": name, "conversations": turns, **fields}


@pytest.fixture
def odd_file(tmp_path):
    """Return a conversation file with several images, Chinese, earlier turns, a record twice, a text as an image."""
    for number, color in enumerate(((200, 0, 0), (0, 200, 0))):
        (tmp_path / f"{number}.png").write_bytes(png(color))
    (tmp_path / "text.png").write_text("no image")
    both = "Picture 1: <img>0.png</img>\nPicture 2: <img>1.png</img>\n"
    box = "<ref>圆</ref><box>(1,2),(300,400)</box>"
    talks = [
        talk("比较", both + "哪张？", "第一张", "在哪里？", box, system="你是助手。", category=["a", "中文/类"]),
        talk("x", both + "the same?", "no"),
        talk("x", both + "the same?", "no"),
        talk("broken", "<img>text.png</img>what?", "a cat"),
        talk("tags", "what is <ref>it</ref> and <|im_end|>?", "a cat", references=["a cat", "the cat on the mat"]),
        talk("long", "word " * 600, "yes"),
        {"conversations": [{"from": "user", "value": "no id"}, {"from": "assistant", "value": "1,000"}]},
    ]
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(talks, ensure_ascii=False), encoding="utf-8")
    return path


def test_odd_conversations_have_the_same_answers_in_any_batch(odd_file, make_checkpoint, tmp_path):
    said = {}
    for size in (1, 8):
        run(make_checkpoint(), "--data", odd_file, "--batch_size", size, "--max_new_tokens", 9,
            "--output_dir", tmp_path / str(size))  # fmt: skip
        (said[size],) = answers_in(tmp_path / str(size)).values()
    assert said[1] == said[8]
    lines = [json.loads(line) for line in said[1].decode().splitlines()]
    assert [line["id"] for line in lines if line["error"]] == ["broken"] and len(lines) == 7
    (path,) = tmp_path.glob("8/*/*/scores.json")
    scores = json.loads(path.read_text(encoding="utf-8"))
    assert scores["incomplete"] and scores["counts"]["unanswered"] == 1
    assert scores["figures"]["category/中文/类 first_at_0.5"]["count"] == 1


def test_the_error_of_an_image_is_the_same_in_every_process():
    said = set()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'x'.*get the file again") as caught:
            ImageSource.from_bytes("x", b"no image").open()
        said.add(str(caught.value))
    assert len(said) == 1 and "0x" not in said.pop()


def test_a_checkpoint_that_was_trained_on_is_asked_again(odd_file, make_checkpoint, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(make_checkpoint(), model)
    command = (model, "--data", odd_file, "--max_new_tokens", 9, "--stage", "answer", "--output_dir", tmp_path / "r")
    run(*command)
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    run(*command)
    run(*command)
    lines = [line for line in capsys.readouterr().err.splitlines() if "answered" in line]
    assert [line.split(": ")[2].split(",")[0] for line in lines] == ["6 of 7 answered"] * 2 + ["0 of 7 answered"]
    assert len(answers_in(tmp_path / "r")) == 1 and len(list(tmp_path.glob("r/model-*"))) == 2


def test_what_cannot_be_scored_leaves_the_others_scored(odd_file, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps([talk("x", "hi", "yes")]))
    results, request = tmp_path / "results", suite.Request(data=(str(odd_file), str(other)))
    figures_of(request, results, first_answer)
    for path in results.glob("*/*/scores.json"):
        path.unlink()
    odd_file.unlink()
    with pytest.raises(ValueError, match=r"odd.json is missing"):
        list(suite.score_all(results, suite.Request()))
    (path,) = results.glob("*/*/scores.json")
    assert path.parent.name == "data-other"


@pytest.mark.parametrize(
    ("record", "subset", "reason"),
    [
        (talk("x", "hi", "perhaps", metric="yes_no"), suite.Subset(), "'x': metric is yes_no.*neither"),
        (talk("x", "hi", "yes"), suite.Subset(offset=5), "--offset 5 leaves none of 1 records"),
    ],
)
def test_what_cannot_be_scored_is_not_asked(tmp_path, record, subset, reason):
    path = tmp_path / "own.json"
    path.write_text(json.dumps([record]))
    with pytest.raises(ValueError, match=reason):
        suite.tasks_of(suite.Request(data=(str(path),), subset=subset))


def test_all_unknown_names_are_told_at_once():
    with pytest.raises(ValueError, match=r"(?s)2 problems:.*'DocVQA'.*docvqa_val.*'textvq'.*textvqa_val"):
        suite.Request(names=("DocVQA", "mme", "textvq")).benchmarks()
    asked = suite.Request(names=("chartqa_test", "chartqa_test_human", "mme")).benchmarks()
    assert [one.name for one in asked] == ["chartqa_test_human", "chartqa_test_augmented", "mme"]
