"""Checkpoints whose weights lie in parts are exported like any other model."""

import json
import shutil

import pytest
import torch
from helpers import runs
from torch.distributed import checkpoint as parted

from qwen_vl.cli import main
from qwen_vl.export import parts
from qwen_vl.export.export import export


@pytest.fixture
def in_parts(make_checkpoint, tmp_path):
    """Return a checkpoint of a run like those of FSDP."""
    folder = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(make_checkpoint(), folder)
    state = {f"model.{name}": tensor for name, tensor in runs.weights(folder).items()}
    parted.save(state, checkpoint_id=folder / parts.FSDP_WEIGHTS, no_dist=True)
    (folder / "model.safetensors").unlink()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    return folder


@pytest.mark.parametrize("verb", [["export"], ["checkpoint", "export"]], ids=" ".join)
def test_both_verbs_join_the_parts(in_parts, make_checkpoint, tmp_path, verb):
    main.main([*verb, str(in_parts), str(tmp_path / "out"), "--dtype", "bfloat16"])
    half = {name: tensor.bfloat16() for name, tensor in runs.weights(make_checkpoint()).items()}
    assert runs.equal(runs.weights(tmp_path / "out"), half)
    assert "tongyi-qianwen" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "trainer_state.json").exists()


def test_parts_that_do_not_fit_the_config_are_one_error(in_parts, tmp_path):
    tensors = parts.joined(in_parts / parts.FSDP_WEIGHTS)
    lost = next(iter(tensors))
    shutil.rmtree(in_parts / parts.FSDP_WEIGHTS)
    state = {f"model.{name}": tensor for name, tensor in tensors.items() if name != lost}
    parted.save(state, checkpoint_id=in_parts / parts.FSDP_WEIGHTS, no_dist=True)
    with pytest.raises(ValueError, match=f"1 missing \\({lost}") as refused:
        export(in_parts, output_dir=tmp_path / "out")
    assert str(in_parts) in str(refused.value) and not (tmp_path / "out").exists()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
