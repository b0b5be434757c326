"""Writing of a model folder from a model on disk."""

import json

import torch
from helpers import runs

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.export import model_folder


def test_a_folder_is_written_from_disk_shard_by_shard(make_checkpoint, tmp_path):
    disk, tokenizer = DiskModel(make_checkpoint()), loading.load_tokenizer(make_checkpoint())
    assert set(model_folder.dtypes_of(disk, "auto").values()) == {torch.float32}
    dtypes = model_folder.dtypes_of(disk, "bfloat16")
    model_folder.write(tmp_path, disk, tokenizer, dtypes=dtypes, max_shard_size="300KB")
    before, after = runs.weights(make_checkpoint()), runs.weights(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert runs.equal(after, {name: tensor.bfloat16() for name, tensor in before.items()})
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
