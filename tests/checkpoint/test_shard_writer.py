"""A model folder that is written shard by shard, and is complete or absent."""

import json

import pytest
import torch
from helpers import runs

from qwen_vl.checkpoint import loading, shard_writer
from qwen_vl.checkpoint.folder import ModelFolder


@pytest.mark.parametrize("size", ["1GB", "400KB"])
def test_a_folder_is_written_shard_by_shard(make_checkpoint, tmp_path, size):
    folder, read = ModelFolder.open(make_checkpoint()), []
    tensors = runs.weights(folder.path)
    model = loading.skeleton(folder.path, folder.config)
    with shard_writer.complete(tmp_path / "out") as staging:
        shard_writer.write_companions(staging, model, folder.tokenizer, dtype=torch.float32)
        assert not list(staging.glob("*.safetensors*"))
        meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
        shard_writer.write_weights(staging, meta, lambda name: read.append(name) or tensors[name], max_shard_size=size)
        assert not (tmp_path / "out").exists()
    assert read == list(tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shards = list((tmp_path / "out").glob("*.safetensors"))
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert (len(shards) > 2) == index.is_file() == (size == "400KB")
    assert size == "1GB" or set(json.loads(index.read_text())["weight_map"]) == tensors.keys()
    assert runs.equal(dict(loading.load_model(tmp_path / "out").state_dict()), tensors)
    assert loading.load_tokenizer(tmp_path / "out").get_vocab() == folder.tokenizer.get_vocab()


def test_what_fails_leaves_nothing_and_what_is_there_is_kept(tmp_path):
    with pytest.raises(OSError, match="out: could not be written"), shard_writer.complete(tmp_path / "out"):
        raise OSError("full")
    assert not list(tmp_path.iterdir())
    assert shard_writer.check_free(str(tmp_path / "out")) == tmp_path / "out"
    (tmp_path / "out").mkdir()
    assert shard_writer.check_free(tmp_path / "out") == tmp_path / "out"
    (tmp_path / "out" / "file").touch()
    for taken in (tmp_path / "out", tmp_path / "out" / "file"):
        with pytest.raises(FileExistsError, match="exists and is not empty"):
            shard_writer.check_free(taken)
