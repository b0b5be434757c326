"""The held-out questions of a run: which records they are, and what cannot be asked."""

import json

import pytest
from helpers import runs

from qwen_vl.cli import run as cli_run
from qwen_vl.evaluation.readers import conversations
from qwen_vl.evaluation.tasks import Subset
from qwen_vl.training.flags import arguments
from qwen_vl.training.held_out import questions

ASKED = ("--eval_generate", "True", "--eval_strategy", "epoch")


def read(path, limit=200):
    return questions.read(str(path), image_folder=str(runs.GOLDEN), limit=limit, max_new_tokens=9, batch_size=4)


def test_the_subset_is_that_of_the_command_every_time(tmp_path):
    data = runs.write_data(tmp_path, runs.TEXTS * 5)
    some, again = read(data, limit=7), read(data, limit=7)
    everything = conversations.read({"records": data, "images": runs.GOLDEN})
    assert [one.id for one in some.records] == [one.id for one in again.records]
    assert [one.id for one in some.records] == [one.id for one in Subset(7).of(everything)] and len(some.records) == 7
    assert len(read(data).records) == 40
    assert some.decoding.max_new_tokens == 9 and some.decoding.keep_boxes and some.prompts[0].style == "chat"


@pytest.fixture
def refused(make_checkpoint, tmp_path, monkeypatch, capsys):
    """Return a function that runs training on records and gives the error line; no weight may be loaded."""

    def run(*flags, records=None):
        data = runs.write_data(tmp_path)
        held_out = tmp_path / "held_out.json"
        held_out.write_text(data.read_text() if records is None else json.dumps(records))
        monkeypatch.setattr("qwen_vl.checkpoint.loading.load_model", None)
        with pytest.raises(SystemExit) as ended:
            argv = runs.command(make_checkpoint(), tmp_path / "out", *ASKED, *flags, eval_data_path=held_out)
            cli_run.run(lambda _: runs.run(argv), [])
        assert ended.value.code == 1 and not (tmp_path / "out").exists()
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))

    return run


def talk(*texts, **fields):
    turns = [{"from": ("user", "assistant")[n % 2], "value": text} for n, text in enumerate(texts)]
    return {"id": "7", "conversations": turns, **fields}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (talk("a", "b", "c"), "7: ends without an answer; evaluation needs a last assistant turn"),
        (talk("a", "b", metric="iou"), "record '7': metric is 'iou', it must be one of boxes, yes_no, text"),
        (talk("a", "maybe", metric="yes_no"), "record '7': metric is yes_no, but its answer 'maybe' is neither"),
    ],
)
def test_records_that_no_metric_can_score_are_named(refused, record, said):
    line = refused(records=[record, talk("a", "b")])
    assert line.startswith("error: --eval_generate: ") and said in line and "leave the flag out" in line


def test_a_metric_that_these_data_do_not_give_is_refused_with_those_that_they_give(refused):
    line = refused("--metric_for_best_model", "eval_yes_no_f1")
    assert "eval_yes_no_f1: evaluation measures eval_loss, " in line and " eval_boxes_f1, " in line


def test_prompts_beyond_the_trained_length_are_named_where_weights_are_sharded(
    make_checkpoint, tmp_path, monkeypatch, capsys
):
    from qwen_vl.training import preflight
    from qwen_vl.training.distributed import engines

    tokenizer = preflight.QWenTokenizer.from_pretrained(make_checkpoint())
    data = runs.write_data(tmp_path, [(None, "long " * 600, "a"), (None, "short", "b")])
    flags = arguments.parse(["--data_path", str(data), "--output_dir", "x", "--use_cpu", "True"])
    preflight.check_questions(read(data), flags.training, tokenizer, longest=512)
    monkeypatch.setattr(engines, "is_sharded", lambda training: True)
    with pytest.raises(ValueError, match=r"1 prompts have more than 512 tokens: sample-0 \([\d,]+\); ZeRO-3 and FSDP"):
        preflight.check_questions(read(data), flags.training, tokenizer, longest=512)
    preflight.check_questions(None, flags.training, tokenizer, longest=512)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--eval_generate", "True"], "--eval_generate needs --eval_strategy and --eval_data_path"),
        ([*ASKED], "--eval_strategy needs --eval_data_path"),
        ([*ASKED, "--eval_generate_limit", "0"], "--eval_generate_limit 0: use a number above 0"),
        ([*ASKED, "--eval_generate_max_new_tokens", "0"], "--eval_generate_max_new_tokens 0: use a number above 0"),
        ([*ASKED, "--eval_generate_batch_size", "-1"], "--eval_generate_batch_size -1: use a number above 0"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, said, capsys):
    with pytest.raises(SystemExit):
        arguments.parse(["--data_path", "x.json", "--output_dir", "x", *flags])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "expected"), [("eval_boxes_f1", True), ("eval_boxes_without", False), ("eval_loss", False)]
)
def test_figures_that_count_bad_answers_are_better_when_lower(metric, expected):
    needed = ["--data_path", "x.json", "--output_dir", "x", "--eval_data_path", "y.json", "--save_strategy", "epoch"]
    flags = arguments.parse([*needed, *ASKED, "--load_best_model_at_end", "True", "--metric_for_best_model", metric])
    assert flags.training.greater_is_better is expected
