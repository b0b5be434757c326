"""Folders that are complete or absent, whatever happens while they are written."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qwen_vl.checkpoint import saving


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("PytorchStreamWriter failed")])
def test_a_failed_write_names_the_target_and_leaves_nothing(tmp_path, error):
    with pytest.raises(OSError, match=r"out: could not be written .*; nothing half-written stays there\. Do this"):  # noqa: SIM117
        with saving.staged(tmp_path / ".staging", tmp_path / "out", hint="Do this") as folder:
            (folder / "a").write_text("half")
            raise error
    assert not list(tmp_path.iterdir())


def test_a_lost_connection_and_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError("gloo: connection closed by peer"), KeyError("x")):
        with pytest.raises(type(error)) as raised, saving.staged(tmp_path / ".staging", tmp_path / "out"):
            raise error
        assert raised.value is error and not list(tmp_path.iterdir())


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for number in (1, 2):
        with saving.staged(tmp_path / ".staging" / "x", tmp_path / "out") as folder:
            assert not list(folder.iterdir())
            (folder / f"file-{number}").touch()
            saving.put_in_place(folder, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [f"file-{number}"]


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o2775])
def test_weights_are_read_by_whoever_may_read_their_folder(tmp_path, mode):
    with saving.staged(tmp_path / ".staging" / "x", tmp_path / "out") as folder:
        folder.chmod(mode)
        save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
        saving.put_in_place(folder, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_only_the_owner_makes_and_removes_the_folder(tmp_path):
    with saving.staged(tmp_path / "staging", tmp_path / "out", owner=False) as folder:
        assert not folder.exists()
        folder.mkdir()
    assert folder.is_dir()


def test_an_error_without_a_file_name_gets_one(tmp_path):
    with pytest.raises(OSError, match="out: could not be written"), saving.naming("out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="absent"), saving.naming("out"):
        (tmp_path / "absent").read_text()


def test_a_file_in_the_way_is_found_and_nothing_is_made(tmp_path):
    (tmp_path / "file").touch()
    saving.check_writable(tmp_path / "a" / "b")
    with pytest.raises(OSError, match="file is not a folder"):
        saving.check_writable(tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_wrapped_model_has_its_own_class_for_a_moment():
    model = nn.Linear(1, 1)
    model.__class__ = type("FSDPLinear", (nn.Linear,), {})
    with saving.own_class(model):
        assert type(model) is nn.Linear
    assert type(model).__name__ == "FSDPLinear" and torch.equal(model(torch.zeros(1)), model.bias)
