"""The files of a model folder: JSON, weight files and clear errors for damage."""

import json

import pytest
import torch
from helpers import runs

from qwen_vl.checkpoint import files, fit, loading


def test_a_hub_name_without_a_network_is_one_line():
    with pytest.raises(FileNotFoundError, match="Qwen/Qwen-VL-Chat-Nowhere: no folder here") as raised:
        loading.load_config("Qwen/Qwen-VL-Chat-Nowhere")
    assert "\n" not in str(raised.value)


def test_json_is_an_object_or_absent_or_one_clear_error(tmp_path):
    assert files.read_json(tmp_path, "a.json") is files.read_json_or_none(tmp_path, "a.json") is None
    assert files.read_json_or_none(tmp_path / "nowhere", "a.json") is None
    for content, said in (("{", "a.json: not JSON"), ("[1]", "a.json: holds a list, not an object")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            files.read_json(tmp_path, "a.json")
        assert files.read_json_or_none(tmp_path, "a.json") is None
    (tmp_path / "a.json").write_text('{"a": "图"}', encoding="utf-8")
    assert files.read_json(tmp_path, "a.json") == files.read_json_or_none(tmp_path, "a.json") == {"a": "图"}


def test_safetensors_come_before_bin_files_and_whole_files_before_shards(tmp_path):
    def names():
        return [name.removeprefix(f"{tmp_path}/") for name in files.weight_files(tmp_path)]

    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        names()
    for index, expected in (("pytorch_model.bin", ["b", "c"]), ("model.safetensors", ["a", "b"])):
        weight_map = dict(zip("xyz", [*expected, expected[0]], strict=True))
        (tmp_path / f"{index}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        for shard in expected:
            (tmp_path / shard).touch()
        assert names() == expected
    (tmp_path / "b").unlink()
    with pytest.raises(FileNotFoundError, match=r"b is listed in model\.safetensors\.index\.json but missing"):
        names()
    (tmp_path / "model.safetensors").touch()
    assert names() == ["model.safetensors"]


def test_tensors_of_both_kinds_of_files_have_names_shapes_and_slices(make_checkpoint, tmp_path):
    tensors = runs.weights(make_checkpoint())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    for file in (make_checkpoint() / "model.safetensors", tmp_path / "pytorch_model.bin"):
        opened = dict(files.open_tensors(str(file)))
        assert opened.keys() == tensors.keys()
        assert {name: files.shape_of(one) for name, one in opened.items()} == fit.shapes(tensors.items())
        assert all(torch.equal(opened[name][:], tensor) for name, tensor in tensors.items())


def test_an_adapter_is_refused_with_what_to_do(tmp_path):
    files.refuse_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "base.json").write_text('{"name": "BASE"}')
    with pytest.raises(ValueError, match=r"merge it first .* and its base: --model_name_or_path BASE"):
        files.weight_files(tmp_path)
