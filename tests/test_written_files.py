"""Files that are written whole or not at all, JSON files that are read, bytes as an address."""

import io
import json

import pytest
from PIL import Image
from safetensors import SafetensorError

from qwen_vl.cli.run import message
from qwen_vl.files import data_uri, read_entries, read_json, read_object, replacing, whole_file
from qwen_vl.model.image_loading_qwen import read_image


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


@pytest.mark.parametrize("content", ["{", "", "[" * 100_000, b"\xff\xfe{}"])
def test_what_is_no_json_is_named_with_its_cure(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_json, read_object):
        with pytest.raises(ValueError, match=r"a\.json: not JSON \(.*\); get it again$"):
            read(path, cure="get it again")
    path.write_text("[1]")
    assert read_json(path, cure="-") == [1]
    with pytest.raises(ValueError, match=r"a\.json: holds a list, not an object; get it again$"):
        read_object(path, cure="get it again")
    path.write_text('\ufeff{"a": "红"}', encoding="utf-8")
    assert read_json(path, cure="-", encoding="utf-8-sig") == {"a": "红"}
    with pytest.raises(ValueError, match="BOM"):
        read_object(path, cure="-")


def test_entries_end_before_the_line_that_a_killed_run_left(tmp_path):
    path = tmp_path / "a.jsonl"
    entries = [{"step": 1, "text": "红\u2028\x85"}, {"step": 2}]
    whole = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
    last = json.dumps({"step": 3, "loss": 1.5}).encode()
    for torn in range(len(last) + 1):
        path.write_bytes(whole + last[:torn])
        assert read_entries(path) == entries
    path.write_bytes(whole + last + b"\n")
    assert [entry["step"] for entry in read_entries(path)] == [1, 2, 3]
    with pytest.raises(FileNotFoundError):
        read_entries(tmp_path / "b.jsonl")


def test_an_address_of_bytes_is_what_the_model_opens():
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    uri = data_uri(file.getvalue(), "image/png")
    assert uri.startswith("data:image/png;base64,iVBORw0KGgo")
    assert read_image(uri).size == (3, 2)


def test_a_full_disk_is_said_with_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(OSError) as raised, whole_file(path):
        raise OSError(28, "No space left on device")
    assert message(raised.value) == f"{path}: no space left on device; free some space, or use another folder"
