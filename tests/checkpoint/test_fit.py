"""Weights that do not fit a configuration: one error for all that is wrong."""

import re
import shutil

import pytest
import torch
from helpers import runs
from safetensors.torch import save_file

from qwen_vl.checkpoint import fit, loading
from qwen_vl.checkpoint.disk_model import DiskModel


@pytest.mark.parametrize("name", ["lm_head.bias", "transformer.visual.conv1.bias"])
def test_a_zero_bias_outside_the_packed_linears_is_left_over_in_memory_and_on_disk(
    make_int4_checkpoint, tmp_path, name
):
    folder = shutil.copytree(make_int4_checkpoint(), tmp_path / "int4")
    tensors = runs.weights(folder) | {name: torch.zeros(4)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for open_model in (loading.load_model, DiskModel):
        with pytest.raises(ValueError, match=rf"1 left over \({re.escape(name)}"):
            open_model(folder)


def test_everything_wrong_is_in_one_error():
    misfit = fit.compare({"a": [1], "b": [2], "c": [3], "d": [4]}, {"b": [2], "c": [9], "d": None, "e": [5]})
    assert (set(misfit.missing), set(misfit.left_over), misfit.reshaped) == ({"a"}, {"e"}, ["c"])
    said = r"folder: .* config.json: 1 missing \(a \.\.\); 1 left over \(e \.\.\); 1 of another shape \(c \.\.\); use"
    with pytest.raises(ValueError, match=said):
        fit.check("folder", misfit)
    fit.check("folder", fit.compare({"a": [1]}, {"a": [1]}))


def test_only_zero_biases_of_packed_linears_are_forgiven():
    tensors = {
        "transformer.h.0.mlp.w1.bias": torch.zeros(3),
        "transformer.h.0.mlp.w2.bias": torch.tensor([0, 0, 1e-3]),
        "lm_head.bias": torch.zeros(3),
        "transformer.h.0.mlp.w1.weight": torch.zeros(3),
    }
    misfit = fit.without_zero_biases(fit.compare({}, fit.shapes(tensors.items())), tensors.__getitem__)
    assert set(misfit.left_over) == tensors.keys() - {"transformer.h.0.mlp.w1.bias"}
