"""From answers on disk to samples, scores and means, without a model."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.evaluations import COLORS, MEAN, RANKED, SQUARES, FakeModel, write_data
from helpers.openai_server import completion, serving

from qwen_vl.cli.evaluate import score_line
from qwen_vl.evaluation import suite
from qwen_vl.evaluation.benchmarks import BENCHMARKS
from qwen_vl.evaluation.judge import Judge
from qwen_vl.evaluation.metrics.result import Metric, Result, SampleScore
from qwen_vl.evaluation.openai_protocol import Endpoint
from qwen_vl.evaluation.report import to_markdown
from qwen_vl.evaluation.runner import ModelSource
from qwen_vl.evaluation.scored_runs import read_run
from qwen_vl.evaluation.statistics import mean_figure
from qwen_vl.evaluation.suite import Request
from qwen_vl.evaluation.tasks import Overrides, Subset


def judged(pairs, ask):
    """Return a score that the judge's replies are."""
    replies = ask([[{"role": "user", "content": pair.record.question}] for pair in pairs])
    samples = [SampleScore(pair.record.id, float(reply), "") for pair, reply in zip(pairs, replies, strict=True)]
    return Result("score", {"score": mean_figure([sample.score for sample in samples])}, samples)


def submit(folder, pairs):
    path = folder / "submission.json"
    path.write_text(json.dumps([pair.answer.text for pair in pairs]))
    return [path]


JUDGED = replace(SQUARES, name="squares_judged", metric=Metric("judge", judged, needs_judge=True))
SENT = replace(SQUARES, name="squares_test", submission=submit, has_answers=False)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Return the folder of the squares, which are benchmarks of the registry for a test."""
    for benchmark in (SQUARES, RANKED, MEAN, JUDGED, SENT):
        monkeypatch.setitem(BENCHMARKS, benchmark.name, benchmark)
    write_data(tmp_path / "data")
    return tmp_path / "data"


def answered(data, *names, model=None, **options):
    """Answer benchmarks; return (request, folder of the results, folders of the runs)."""
    request = Request(names=names, data_dir=data, **options)
    model = model or FakeModel()
    source, results = ModelSource(model.identity, lambda: model), data.parent / "results"
    tasks = suite.tasks_of(request)
    return request, results, suite.answer_all(tasks, [lambda: source], results, batch_size=8, report=str)


def score(request, results, **options):
    return {scores["benchmark"]: scores for scores in suite.score_all(results, request, **options)}


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_scores_and_samples(data):
    request, results, (folder,) = answered(data, "squares")
    scores = score(request, results)["squares"]
    assert json.loads((folder / "scores.json").read_text()) == scores
    right = [sample["score"] for sample in samples_of(folder)]
    figure = scores["figures"]["accuracy"]
    assert figure["value"] == pytest.approx(100 * sum(right) / 12) and figure["count"] == len(right) == 12
    assert figure["high"] - figure["value"] == pytest.approx(1.96 * figure["standard_error"], rel=1e-4)
    assert scores["counts"] == {"records": 12, "answered": 12, "unanswered": 0, "unmatched": 0, "unreadable_images": 0}
    assert not scores["incomplete"] and not scores["subset"] and scores["published"] == {"Qwen-VL": 50.0}
    assert (scores["model"], scores["metric"], scores["headline"]) == ("fake", "exact match", "accuracy")
    assert scores["settings"]["decoding"]["kind"] == "generate" and scores["settings"]["variant"] == "official"
    sample = samples_of(folder)[4]
    assert (sample["id"], sample["question"], sample["answers"]) == ("1-1", "Q1?", ["blue"])
    assert sample["answer"] in COLORS and sample["images"] == [sample["cluster"]] and sample["tokens"] == 1
    assert answered(data, "squares", subset=Subset(seed=5))[2] == [folder]  # a seed alone changes nothing
    again = score(request, results, variant="published")["squares"]
    assert again["headline"] == "accuracy as published" and again["settings"]["variant"] == "published"


def test_all_runs_of_a_folder_are_scored_and_their_means_added(data):
    """Also runs with other settings, whose folders keep what was asked."""
    answered(data, "squares_mean")
    answered(data, "squares_mean", overrides=Overrides(style="chat"), subset=Subset(6, seed=3))
    _, results, _ = answered(data, "squares", overrides=Overrides(shots=0), subset=Subset(3))
    everything = list(suite.score_all(results, Request(data_dir=data)))
    names = [file.parent.name for file in sorted(results.glob("*/*/scores.json"))]
    changes = "+chat+limit6+seed3"
    assert sorted(names) == sorted(
        [
            "squares+limit3",
            *(f"{name}{end}" for name in ("squares", "squares_ranked", "squares_mean") for end in ("", changes)),
        ]
    )
    assert len(everything) == 7
    mean = json.loads((results / "fake-01234567/squares_mean/scores.json").read_text())
    one, two = (mean["figures"][f"part/{name}"] for name in MEAN.parts)
    figure = mean["figures"]["accuracy"]
    assert figure["value"] == pytest.approx((one["value"] + two["value"]) / 2)
    assert figure["standard_error"] == pytest.approx(math.hypot(one["standard_error"], two["standard_error"]) / 2)
    assert figure["count"] == mean["counts"]["records"] == 24 and mean["settings"]["parts"] == list(MEAN.parts)
    subset = json.loads((results / f"fake-01234567/squares_mean{changes}/scores.json").read_text())
    assert subset["subset"] and subset["settings"]["style"] == "chat" and subset["counts"]["records"] == 12
    ranked = samples_of(results / "fake-01234567/squares_ranked")[0]
    assert ranked["answer"] in ("A", "B", "C") and len(ranked["extra"]["losses"]) == 3 and ranked["finish"] == "rank"


def test_an_unreadable_image_makes_a_score_incomplete(data):
    (data / "1.png").write_bytes(b"no image")
    request, results, (folder,) = answered(data, "squares")
    scores = score(request, results)["squares"]
    counts = {"records": 12, "answered": 9, "unanswered": 3, "unmatched": 0, "unreadable_images": 3}
    assert scores["incomplete"] and scores["counts"] == counts and scores["figures"]["accuracy"]["count"] == 9
    broken = samples_of(folder)[3]
    assert (broken["id"], broken["score"], broken["answer"]) == ("1-0", None, None)
    assert "1.png" in broken["extra"]["error"]


def test_a_killed_run_can_be_scored_as_incomplete(data):
    with pytest.raises(KeyboardInterrupt):
        answered(data, "squares", model=FakeModel(dies_after=1))
    scores = score(Request(data_dir=data), data.parent / "results")["squares"]
    assert scores["incomplete"] and scores["counts"]["answered"] == 8 and scores["counts"]["unreadable_images"] == 0


def test_submission_files_are_written_for_complete_runs(data):
    request, results, (folder,) = answered(data, "squares_test")
    scores = score(request, results)["squares_test"]
    assert len(json.loads((folder / "submission.json").read_text())) == 12
    assert scores["figures"] == {} and "not public" in scores["notes"][0]
    assert {sample["score"] for sample in samples_of(folder)} == {None}
    request, results, (folder,) = answered(data, "squares_test", subset=Subset(3))
    scores = next(suite.score_all(results, request, folders=[folder]))
    assert not (folder / "submission.json").exists() and "no submission file" in scores["notes"][1]


def test_what_cannot_be_scored(data):
    request, results, (folder,) = answered(data, "squares")
    for scored in (Request(names=["squares_ranked"], data_dir=data), Request(data_dir=data)):
        with pytest.raises(ValueError, match="no answers to score; run the stage answer first"):
            list(suite.score_all(results if scored.names else Path("nowhere"), scored))
    lines = (data / "squares.jsonl").read_text()
    (data / "squares.jsonl").write_text(lines.replace("Q1?", "Q9?"))
    with pytest.raises(ValueError, match=r"settings\.json: the data files of squares have changed"):
        score(request, results)
    (data / "squares.jsonl").write_text(lines)
    (folder / "answers.jsonl").unlink()
    with pytest.raises(ValueError, match="none of 12 records has an answer; run the stage answer"):
        score(request, results)


def test_a_judge_that_refuses_ends_the_scoring_and_keeps_everything(data):
    request, results, _ = answered(data, "squares_judged", "squares")
    with pytest.raises(ValueError, match=r"squares_judged: is scored by a judge; give --judge_model"):
        score(request, results)
    assert len(list(results.glob("*/*/scores.json"))) == 1  # of the benchmark that needs none
    replies = [completion("1"), completion("0")]
    with serving(lambda path, body: replies.pop() if replies else (401, "no")) as (address, _):
        judge = Judge(Endpoint.at(address), "j", results / "judge", concurrent=1)
        with pytest.raises(OSError, match="answers 401"):
            score(request, results, judge=judge)
    assert len(list(results.glob("judge/*.json"))) == 2 and len(list(results.glob("*/*/answers.jsonl"))) == 2
    assert not list(results.glob("*/squares_judged/scores.json"))
    with serving(lambda path, body: completion("1")) as (address, server):
        scores = score(request, results, judge=replace(judge, endpoint=Endpoint.at(address)))["squares_judged"]
        assert len(server.requests) == 1  # three questions, twelve records
    assert scores["settings"]["judge"] == "j" and scores["figures"]["score"]["count"] == 12


def test_everything_that_is_wrong_is_said_at_once(data, tmp_path):
    request = Request(names=["squares", "squares_ranked"], data=["none.json"], data_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"3 problems:\n.*squares: .*make it with a pencil\n.*ranked.*\n.*none\.json"):
        suite.tasks_of(request)
    with pytest.raises(ValueError, match=r"3 problems"):
        suite.check(request)
    for name in ("0.png", "3.png"):
        (data / name).unlink()
    with pytest.raises(ValueError, match=r"2 of 4 images cannot be read.*\n.*0\.png.*\n.*3\.png"):
        answered(data, "squares", model=FakeModel(dies_after=0))


def test_a_model_that_is_not_there_is_said_before_another_one_answers(data):
    model = FakeModel(dies_after=0)

    def nowhere():
        raise ValueError("no such checkpoint folder")

    sources = [lambda: ModelSource(model.identity, lambda: model), nowhere]
    tasks, results = suite.tasks_of(Request(names=["squares"], data_dir=data)), data.parent / "results"
    with pytest.raises(ValueError, match="no such checkpoint folder"):
        suite.answer_all(tasks, sources, results, batch_size=8, report=str)
    assert not results.exists()


def test_files_of_another_size_than_the_published_ones_are_marked(data, monkeypatch):
    mark = "data files: 12 records, published: 5,000"
    monkeypatch.setitem(BENCHMARKS, "squares", replace(SQUARES, size=5000))
    monkeypatch.setitem(BENCHMARKS, "squares_ranked", replace(RANKED, size=12))
    request = Request(names=["squares", "squares_ranked"], data_dir=data)
    assert suite.check(request) == [f"squares: {mark}"]
    _, results, (folder, ranked) = answered(data, "squares", "squares_ranked")
    scores = score(request, results)
    assert [score_line(one).endswith(f" [{mark}]") for one in scores.values()] == [True, False, False]
    assert read_run(folder).marks == [mark] and not read_run(ranked).marks
    assert f"<br>{mark}" in to_markdown([read_run(folder)])


def test_a_line_of_a_score_names_the_run(data):
    request, results, _ = answered(data, "squares", overrides=Overrides(end="im_end"), subset=Subset(4))
    (scores,) = score(request, results).values()
    assert score_line(scores).startswith("fake: squares+im_end+limit4: accuracy")
