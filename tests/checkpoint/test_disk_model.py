"""A model whose weights stay on disk."""

import json
import shutil

import pytest
import torch
from helpers import runs

from qwen_vl.checkpoint import fit
from qwen_vl.checkpoint.disk_model import DiskModel, is_placeholder
from qwen_vl.checkpoint.folder import ModelFolder


def test_models_of_one_folder_share_no_settings(make_checkpoint, make_int4_checkpoint):
    folder = ModelFolder.open(make_int4_checkpoint())
    first, second = DiskModel(folder).model, DiskModel(folder).model
    first.config.seq_length, first.generation_config.max_new_tokens = 1, 1
    assert second.config.seq_length == folder.config.seq_length == 512
    assert second.generation_config.max_new_tokens == folder.generation_config.max_new_tokens == 32
    assert folder.quantization == "gptq" and folder.config.quantization_config


def test_weights_are_read_and_dropped_by_name(make_checkpoint):
    disk, tensors = DiskModel(make_checkpoint()), runs.weights(make_checkpoint())
    assert {name: list(shape) for name, shape in disk.shapes().items()} == fit.shapes(tensors.items())
    assert not any(disk.current(name) is not None for name in tensors)
    assert all(is_placeholder(parameter) for parameter in disk.model.parameters())
    names = ["lm_head.weight", "transformer.h.1.mlp.w1.weight"]
    assert disk.fill(names, dtype=torch.float64) == names and disk.fill(names, dtype=torch.float64) == []
    assert all(torch.equal(disk.current(name), tensors[name].double()) for name in names)
    disk.empty(names[:1])
    assert disk.current(names[0]) is None and disk.current(names[1]) is not None
    assert disk.shapes()[names[0]] == tensors[names[0]].shape


def test_weights_that_do_not_fit_the_config_are_refused(make_checkpoint, tmp_path):
    folder = shutil.copytree(make_checkpoint(), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"copy: the weights do not fit config\.json: 8 left over"):
        DiskModel(folder)
