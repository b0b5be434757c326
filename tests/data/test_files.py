"""Files that are either complete or absent."""

import pytest

from qwen_vl.data.files import whole_file


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_an_error_has_the_name_that_the_user_gave(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "gone" / "data.json"):
        pass
    assert caught.value.filename == str(tmp_path / "gone" / "data.json")
