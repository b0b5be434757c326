"""Bad input: one clear error, the right exit code, no traceback and no partial files."""

import os
import resource
from contextlib import contextmanager

import pytest
import torch
from helpers import runs

import finetune
from qwen_vl.checkpoint import saving
from qwen_vl.cli import run


@pytest.fixture
def fails(capsys):
    """Return a function that runs training, expects exit code 1, and gives the message behind `error: `."""

    def failed_run(*args, **settings):
        with pytest.raises(SystemExit) as ended:
            run.run(lambda argv: runs.train(*args, **settings), [])
        assert ended.value.code == 1
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        lines = shown.err.splitlines()
        first = next(index for index, line in enumerate(lines) if line.startswith("error: "))
        return "\n".join(lines[first:])

    return failed_run


@contextmanager
def full_disk(limit=100_000):
    """Let no file grow beyond `limit` bytes, which is how a quota or a full disk looks to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_wrong_paths(make_checkpoint, tmp_path, fails):
    assert "no-model: no such checkpoint folder" in fails(tmp_path / "no-model", tmp_path / "out")
    assert "Some/Model: no folder here" in fails("Some/Model", tmp_path / "out")
    gone = tmp_path / "gone.json"
    assert fails(make_checkpoint(), tmp_path / "out", data_path=gone) == f"error: {gone}: no such file or directory"
    message = fails(make_checkpoint(), tmp_path / "out", "--use_lora", lora_weight_path=tmp_path)
    assert "no adapter_config.json there" in message
    message = fails(make_checkpoint(), tmp_path / "out", resume_from_checkpoint=tmp_path)
    assert "no trainer_state.json there" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON at line 1"),
        ('{"data": []}', "save the list under its key 'data' alone"),
        ('[{"id": 1, "conversations": [{"from": "user", "value": "Hi"}]}]', "nothing to learn"),
        (
            '[{"id": 1, "conversations": [{"from": "user", "value": "<img>no.png</img>"},'
            ' {"from": "assistant", "value": "A."}]}]',
            "no such file",
        ),
    ],
    ids=["no JSON", "an object", "nothing to learn", "missing image"],
)
def test_wrong_data(make_checkpoint, tmp_path, fails, content, said):
    data = tmp_path / "bad.json"
    data.write_text(content)
    message = fails(make_checkpoint(), tmp_path / "out", data_path=data)
    assert str(data) in message and said in message
    assert not (tmp_path / "out").exists()


def test_data_that_does_not_fit(make_checkpoint, tmp_path, fails):
    assert "8 of 8 conversations exceed 9 tokens" in fails(make_checkpoint(), tmp_path / "out", model_max_length=9)


@pytest.mark.parametrize(
    ("content", "num_workers"),
    [(b"no", 0), (b"not an image, a text", 2), (b"\xff\xd8\xff\xe0 cut", 0)],
    ids=["two bytes", "text", "cut"],
)
def test_an_image_that_cannot_be_opened(make_checkpoint, tmp_path, fails, num_workers, content):
    """Check it also in a data worker, whose error contains its traceback."""
    (tmp_path / "bad.jpg").write_bytes(content)
    data = runs.write_data(tmp_path, [("bad.jpg", "What?", "Nothing.")])
    message = fails(make_checkpoint(), tmp_path / "out", data_path=data, dataloader_num_workers=num_workers)
    assert message.startswith(f"error: sample 'sample-0': image '{tmp_path / 'bad.jpg'}': ")
    assert "\n" not in message


def test_names_that_match_nothing(make_checkpoint, tmp_path, fails):
    message = fails(make_checkpoint(), tmp_path / "out", "--use_lora", lora_target_modules="q_proj")
    assert message.startswith("error: --lora_target_modules q_proj: matches nothing in the model")


def test_an_output_folder_that_cannot_be_written(make_checkpoint, tmp_path, fails, monkeypatch):
    data, file = runs.write_data(tmp_path), tmp_path / "file"
    file.write_text("x")
    for out in (file, file / "out"):
        assert f"{file} is not a folder; give another" in fails(make_checkpoint(), out, data_path=data)
    allowed = os.access
    monkeypatch.setattr(saving.os, "access", lambda path, mode: allowed(path, mode) and str(path) != str(tmp_path))
    assert "may not be written" in fails(make_checkpoint(), tmp_path / "out", data_path=data)


def times(folder):
    """Return when each file below a folder was last written, but for the log, which every run writes on."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "metrics.jsonl"}


@pytest.mark.parametrize("lora", [(), ("--use_lora",)], ids=["full", "lora"])
def test_a_disk_that_is_full_at_a_checkpoint(make_checkpoint, tmp_path, fails, lora):
    """Check that the earlier checkpoint is unchanged, no file of the new one is left, and the run can be resumed."""
    settings = {"save_strategy": "steps", "save_steps": 2}
    out = runs.train(make_checkpoint(), tmp_path / "out", *lora, **settings, max_steps=2)
    before = times(out)
    with full_disk():
        message = fails(make_checkpoint(), out, *lora, **settings, resume_from_checkpoint=True)
    assert "checkpoint-4: could not be written" in message and "\n" not in message
    assert times(out) == before
    runs.train(make_checkpoint(), out, *lora, **settings, resume_from_checkpoint=True)
    assert len(runs.losses(out)) == 4


def test_a_disk_that_is_full_at_the_end(make_checkpoint, tmp_path, fails):
    with full_disk():
        message = fails(make_checkpoint(), tmp_path / "out")
    assert f"{tmp_path / 'out'}: could not be written" in message and "\n" not in message
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"trainer_state.json", "metrics.jsonl"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_writers_report_a_full_disk_in_several_ways(make_checkpoint, tmp_path, fails, monkeypatch, error):
    def save(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "save", save)
    message = fails(make_checkpoint(), tmp_path / "out", save_strategy="steps", save_steps=2)
    assert "checkpoint-2: could not be written" in message and "\n" not in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.jsonl"]


def test_weights_of_an_earlier_run_are_replaced(make_checkpoint, tmp_path):
    """Check that no stale shard or adapter is left to be loaded instead of the result, and that other files stay."""
    out = tmp_path / "out"
    runs.train(make_checkpoint(), out, "--use_lora", max_steps=1)
    for name in ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (out / name).write_text("old")
    runs.train(make_checkpoint(), out, max_steps=1)
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "notes.txt"} <= names
    assert not names & {"adapter_model.safetensors", "adapter_config.json", "base.json", "pytorch_model.bin"}
    assert not {name for name in names if name.startswith("model-") or name.endswith("index.json")}


def test_exit_codes(tmp_path, capsys):
    words = ["--model_name_or_path", str(tmp_path / "none"), "--data_path", "D", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        run.run(finetune.main, ["--no_such_flag"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        run.run(finetune.main, words)
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    with pytest.raises(FileNotFoundError):
        run.run(finetune.main, [*words, "--debug"])

    def interrupted(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run.run(interrupted, [])
    assert ended.value.code == 130
