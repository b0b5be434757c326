"""Two runs on the same records: numbers by hand, other records, other settings, and figures that are no mean."""

import json
import math

import pytest
from helpers.scored import HOSTILE, figure, sample, write_run

from qwen_vl.cli import evaluate
from qwen_vl.evaluation.compare import MEAN_SCORE, compare, compare_runs
from qwen_vl.evaluation.scored_runs import read_run

IDS = ("1", "2", "3", "4")


def write_scores(results, label, scores, run="squares", *, headline=None, **changes):
    """Write a run with one sample a score, two an image; return its folder."""
    samples = [
        sample(id, score, answer=f"{label} {score}", cluster=str(int(id) // 3), **changes.pop(id, {}))
        for id, score in zip(IDS, scores, strict=False)
    ]
    given = [score for score in scores if score is not None]
    value = 100 * sum(given) / len(given) if headline is None else headline
    figures = changes.pop("figures", {"accuracy": figure(value, 1.0)})
    return write_run(results, run, label=label, samples=samples, figures=figures, **changes)


def test_a_paired_difference_by_hand(tmp_path):
    """Differences 1, 0, 0, 1 of images a, a, b, b: mean 0.5; deviations of an image add up to 0."""
    a = write_scores(tmp_path, "aaaa", [0.0, 1.0, 0.0, 0.0])
    b = write_scores(tmp_path, "bbbb", [1.0, 1.0, 0.0, 1.0])
    one = compare_runs(read_run(a), read_run(b))
    assert (one.compared, one.unit, one.value_a, one.value_b, one.difference) == ("accuracy", "percent", 25, 75, 50)
    assert one.standard_error == one.low - 50 == 50 - one.high == 0
    assert (one.num_records, one.num_better, one.num_worse, one.num_same) == (4, 2, 0, 2)
    assert one.p_value == 0.5  # 2 of 2 in one direction: 2 * 0.5^2
    assert [change.id for change in one.changes] == ["1", "4", "2", "3"]  # better, then other answers
    back = compare_runs(read_run(b), read_run(a))
    assert back.difference == -50 and back.num_worse == 2 and back.changes[0].before == "bbbb 1.0"
    same = compare_runs(read_run(a), read_run(a))
    assert same.difference == 0 and same.p_value == 1 and same.changes == ()


def test_the_interval_is_clustered_by_image(tmp_path):
    """Differences 1, 1, 0, 0 of images a, a, b, b: SE^2 = (1^2 + 1^2) / 4^2."""
    a = write_scores(tmp_path, "aaaa", [0.0, 0.0, 0.0, 0.0])
    b = write_scores(tmp_path, "bbbb", [1.0, 1.0, 0.0, 0.0])
    one = compare_runs(read_run(a), read_run(b))
    assert one.standard_error == pytest.approx(100 * math.sqrt(2) / 4)
    assert one.high == pytest.approx(50 + 1.959964 * 100 * math.sqrt(2) / 4)


def test_what_is_compared_is_said(tmp_path):
    """The headline if it is the mean of the scores, else another figure that is, else the mean itself."""
    shares = [0.25, 0.5, 0.0, 0.25]
    pooled = {"accuracy": figure(70.0), "score": figure(25.0)}
    a, b = (write_scores(tmp_path, label, shares, figures=pooled) for label in ("aaaa", "bbbb"))
    one = compare_runs(read_run(a), read_run(b))
    assert one.compared == "score" and one.p_value is None
    assert one.notes == ("accuracy is no mean over records, so score is compared",)
    points = {"accuracy": figure(900.0, unit="points")}
    a, b = (write_scores(tmp_path, label, shares, "mme", figures=points) for label in ("aaaa", "bbbb"))
    one = compare_runs(read_run(a), read_run(b))
    assert (one.compared, one.value_a, one.unit) == (MEAN_SCORE, 25, "percent") and "no mean" in one.notes[0]
    cider = {"accuracy": figure(120.0, unit="points")}
    a, b = (write_scores(tmp_path, x, [60.0, 180.0], "cap", figures=cider) for x in ("aaaa", "bbbb"))
    one = compare_runs(read_run(a), read_run(b))
    assert (one.compared, one.value_a, one.unit, one.notes) == ("accuracy", 120, "points", ())
    a, b = (write_scores(tmp_path, x, [0.0] * 4, "sent", figures={}) for x in ("aaaa", "bbbb"))
    for folder in (a, b):
        scores = json.loads((folder / "scores.json").read_text()) | {"headline": ""}
        (folder / "scores.json").write_text(json.dumps(scores))
    one = compare_runs(read_run(a), read_run(b))
    assert one.p_value is None and len(one.changes) == 4 and "test split" in one.notes[0]


def test_records_without_an_answer_are_left_out_and_counted(tmp_path):
    a = write_scores(tmp_path, "aaaa", [0.0, 1.0, None, 1.0])
    b = write_scores(tmp_path, "bbbb", [1.0, 1.0, 0.0, 1.0])
    one = compare_runs(read_run(a), read_run(b))
    assert one.num_records == 3 and one.compared == "accuracy" and one.value_b == 100
    assert one.notes == ("1 of 4 records lack an answer in one run and are left out",)


def test_other_records_are_an_error_that_names_them(tmp_path):
    a = write_scores(tmp_path, "aaaa", [0.0] * 4)
    b = write_scores(tmp_path, "bbbb", [0.0] * 2)
    with pytest.raises(ValueError, match=r"squares: .* not of the same records: 2 of 4 records are only in A \(3, 4\)"):
        compare(a, b)
    with pytest.raises(ValueError, match=r"only in B \(3, 4\).*--limit, --offset and --seed"):
        compare(b.parent, a.parent)
    changed = write_scores(tmp_path, "cccc", [0.0] * 4, **{"2": {"question": "another"}})
    with pytest.raises(ValueError, match=r"1 records have another question, options or right answers \(2\)"):
        compare(a, changed)


def test_other_settings_are_an_error_unless_wanted(tmp_path):
    settings = {"template": "{question}", "style": "chat", "seed": 3, "variant": "official", "judge": None}
    a = write_scores(tmp_path, "aaaa", [0.0] * 4)
    b = write_scores(tmp_path, "bbbb", [1.0] * 4, "squares+chat", settings=settings)
    with pytest.raises(ValueError, match=r"other settings \(template: .*; style: raw in A, chat in B; .*--anyway"):
        compare(a, b)
    ((one,), _) = compare(a, b, anyway=True)
    assert one.run == "squares / squares+chat" and one.difference == 100
    assert "other settings: style: raw in A, chat in B" in one.notes


def test_folders_that_cannot_be_compared(tmp_path):
    a = write_scores(tmp_path, "aaaa", [0.0] * 4)
    b = write_scores(tmp_path, "bbbb", [0.0] * 4, "circles")
    with pytest.raises(ValueError, match=r"is of squares, .* of circles; compare runs of one benchmark"):
        compare(a, b)
    with pytest.raises(ValueError, match=r"no scored run in common: .* has squares; .* has circles"):
        compare(a.parent, b.parent)
    with pytest.raises(ValueError, match=r"is the folder of a run, .* of a model; give two models, or two runs"):
        compare(a, b.parent)
    with pytest.raises(ValueError, match=r"no folder of a model or of a run .* such as .*aaaa-01234567"):
        compare(tmp_path, a)
    (a / "scores.json").rename(a / "settings.json")
    with pytest.raises(ValueError, match="has no scores yet; run the stage score"):
        compare(a, b)


def test_the_command_prints_and_writes(tmp_path, capsys):
    hostile = HOSTILE.replace("\ud800", "")
    a = write_scores(tmp_path, "aaaa", [1.0] * 4, subset=True, **{"1": {"question": hostile}})
    b = write_scores(tmp_path, "bbbb", [0.0] * 4, subset=True, **{"1": {"question": hostile}})
    evaluate.main(["compare", str(a.parent), str(b.parent), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "-100.00" in printed and "0.125" in printed and "random subset (--limit)" in printed
    text = (tmp_path / "out/compare.md").read_text()
    assert "4 records changed" in text and "random subset" in text and "<script" not in text and "\u202e" not in text
    content = json.loads((tmp_path / "out/compare.json").read_text())
    assert content["runs"][0]["changes"][0]["question"] == hostile and content["runs"][0]["num_worse"] == 4
