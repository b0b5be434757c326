"""JSON lists that are read in pieces."""

import json

from helpers.data_files import error_of

from qwen_vl.data.sources import json_lists


def test_a_list_is_streamed_in_pieces(tmp_path, monkeypatch):
    """Read the same elements, or raise an error with the same line, for any size of the pieces."""
    values = [{"a": 'é\u2028\\"x'}, -1.5e-10, 12345, "]", [], {"b": [1, {"c": None}]}, True]
    for indent in (None, 2):
        text = json.dumps(values, indent=indent, ensure_ascii=False)
        for size in range(1, 20):
            monkeypatch.setattr(json_lists, "PIECE", size)
            path = tmp_path / "d.json"
            path.write_text("\ufeff" + text + " \n", encoding="utf-8")
            assert list(json_lists.elements(path)) == values
            broken = text.replace("12345,", "12345,,")
            path.write_text(broken, encoding="utf-8")
            line = broken[: broken.index(",,")].count("\n") + 1
            assert f"not JSON at line {line} (" in error_of(list, json_lists.elements(path))
            for more in ("]", "", "[]"):
                path.write_text(text[:-1] if not more else text + more, encoding="utf-8")
                assert "not JSON at line" in error_of(list, json_lists.elements(path))
    path.write_text("[ ]")
    assert "an empty list" in error_of(list, json_lists.elements(path))
