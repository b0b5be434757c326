"""Files that are written whole or not at all."""

import pytest
from safetensors import SafetensorError

from qwen_vl.cli.run import message
from qwen_vl.files import replacing, whole_file


def test_a_block_that_ends_well_replaces_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    with replacing(tmp_path / "b.json") as unfinished:
        unfinished.write_text("b")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.json": "new", "b.json": "b"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error"), ValueError])
@pytest.mark.parametrize("write", [whole_file, replacing])
def test_an_error_leaves_the_old_file_alone(tmp_path, write, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises((OSError, ValueError, SafetensorError)) as raised, write(path) as target:
        if write is replacing:
            target.write_text("half")
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "old"
    if write is replacing and error is not ValueError:
        assert str(raised.value).startswith(f"{path}: could not be written") and "free some space" in str(raised.value)


def test_an_error_names_the_file_that_the_user_gave(tmp_path):
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "nowhere" / "a.json"):
        pass
    assert raised.value.filename == str(tmp_path / "nowhere" / "a.json")


def test_a_full_disk_is_said_with_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(OSError) as raised, whole_file(path):
        raise OSError(28, "No space left on device")
    assert message(raised.value) == f"{path}: no space left on device; free some space, or use another folder"
