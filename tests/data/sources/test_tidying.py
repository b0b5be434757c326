"""Tidying: records of tables, with the gaps and types that `datasets`, pandas and Parquet give them."""

import json
import logging

import pandas
import pyarrow as pa
import pytest
from helpers.data_files import FULL, A, Q, error_of, samples
from pyarrow import parquet

from qwen_vl.data.conversations import read


def test_what_datasets_writes_is_read_as_what_it_read(hf_json, tokenizer, tmp_path, image):
    """Read objects as JSON text, null for absent keys, and ids of two types, from each format that it writes."""
    records = [
        *FULL,
        {"id": 7, "topic": {"a": None}, "conversations": [Q, A]},
        {"id": 8, "topic": 3, "conversations": [Q, A]},
    ]
    (tmp_path / "ours.json").write_text(json.dumps(records))
    expected = samples(tmp_path / "ours.json", tokenizer, tmp_path)
    data = hf_json(records)
    assert "Json" in str(data.features)
    data.to_parquet(tmp_path / "d.parquet")
    data.to_json(tmp_path / "d.jsonl", force_ascii=False)
    data.to_json(tmp_path / "d.json", lines=False)
    data.save_to_disk(tmp_path / "disk")
    (tmp_path / "disk" / "cache-1.arrow").write_bytes(b"of map()")
    data.to_pandas().to_json(tmp_path / "pandas.jsonl", orient="records", lines=True)
    for name in ("d.parquet", "d.jsonl", "d.json", "disk", "pandas.jsonl"):
        assert samples(tmp_path / name, tokenizer, tmp_path) == expected, name


def test_gaps_of_pandas(tokenizer, tmp_path, caplog):
    """Read NaN and None as absent keys, and whole floats of a column with gaps as integers."""
    records = [
        {"id": 7, "weight": 2, "conversations": [Q, A]},
        {"system": "S", "conversations": [Q, {**A, "loss": None}]},
    ]
    frame = pandas.DataFrame(records)
    assert frame["id"].dtype == float
    frame.to_parquet(tmp_path / "p.parquet")
    frame.to_json(tmp_path / "p.json", orient="records")
    (tmp_path / "nan.json").write_text(json.dumps(frame.to_dict("records")))
    assert "NaN" in (tmp_path / "nan.json").read_text()
    with caplog.at_level(logging.WARNING):
        for name in ("p.parquet", "p.json", "nan.json"):
            first, second = read(tmp_path / name)
            assert first == records[0] and isinstance(first["id"], int)
            assert second == {"id": f"{name}[1]", "system": "S", "conversations": [Q, A]}
    assert not caplog.records


@pytest.mark.parametrize(
    "conversations",
    [
        [json.dumps([Q, A])],
        [[json.dumps(Q), json.dumps(A)]],
        [{"from": ["user", "assistant"], "value": [Q["value"], A["value"]], "loss": None}],
        pa.array([[list(Q.items()), list(A.items())]], pa.list_(pa.map_(pa.string(), pa.string()))),
        pa.array([[Q, A]], pa.large_list(pa.struct({"value": pa.string_view(), "from": pa.large_string()}))),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps([Q, A])])),
    ],
)
def test_columns_in_which_turns_may_stand(conversations, tmp_path):
    parquet.write_table(pa.table({"id": [1], "conversations": conversations}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == [{"id": 1, "conversations": [Q, A]}]


def test_values_that_are_wrong_stay_wrong(tmp_path):
    """Report wrong values of a table as those of JSON, with file and row, and types that only tables have."""
    turns = [{"from": "user", "value": 3}, {"from": "assistant", "value": None}]
    columns = {"id": ["x"], "system": [b"S"], "weight": ["2"], "conversations": [turns]}
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    parquet.write_table(pa.table({"id": [1.5], "conversations": [str([Q, A])]}), tmp_path / "e.parquet")
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": None, "system": None, "weight": "2", "conversations": turns}))
    message = error_of(read, tmp_path / "d.parquet")
    for words in (
        'd.parquet[0] (id "x").conversations[0].value: a number; use a string',
        ".conversations[1].value: a null; use a string",
        ".system: a value of type bytes; use a string",
        '.weight: "2"; use a number',
    ):
        assert words in message, message
    message = error_of(read, tmp_path / "e.parquet")
    assert "(id 1.5).id: a number" in message and "a list as Python prints it" in message
    message = error_of(read, tmp_path / "d.jsonl")
    assert "d.jsonl:1" in message and ".value: a number" in message and '.weight: "2"' in message
    assert ".system" not in message and ".id:" not in message
