"""`qwen-vl verify`: equalities, differences and the exit code."""

import json
import shutil

import pytest
import torch
from helpers import runs
from safetensors.torch import load_file, save_file

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.cli import verify
from qwen_vl.cli.run import run
from qwen_vl.evaluation import probe_prompts
from qwen_vl.export.verify import comparison
from qwen_vl.export.verify import verify as verify_verify


@pytest.fixture
def changed(make_checkpoint, tmp_path):
    """Return a copy of the tiny model with other weights in one block, another top_p and other code."""
    folder = shutil.copytree(make_checkpoint(), tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.w1.weight"] *= 3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"top_p": 0.8}))
    (folder / "chat_qwen.py").write_text("# another\n")
    return folder


def test_a_copy_is_the_same(make_checkpoint, tmp_path, capsys):
    copy = shutil.copytree(make_checkpoint(), tmp_path / "copy")
    verify.main([str(make_checkpoint()), str(copy)])
    said = capsys.readouterr().out
    assert "largest logit difference 0.00e+00" in said and "3 of 3 the same" in said and "the same within" in said
    assert "files           the same" in said


@pytest.mark.parametrize("flags", [(), ("--from_disk",)])
def test_another_model_ends_with_exit_code_1(make_checkpoint, changed, tmp_path, capsys, flags):
    data = runs.write_data(tmp_path)
    words = [str(make_checkpoint()), str(changed), "--prompts", str(data), "--image_folder", str(runs.GOLDEN)]
    with pytest.raises(SystemExit) as ended:
        run(verify.main, [*words, "--max_prompts", "3", *flags])
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "generation_config.json: top_p 0.3 / 0.8" in said.out and "chat_qwen.py: differs" in said.out
    assert "3 from" in said.out and "more than 0.0001" in said.err
    verify.main([*words, "--max_prompts", "3", "--tolerance", "1", *flags])


def test_the_two_ways_to_read_agree(make_checkpoint):
    folder, records = ModelFolder.open(make_checkpoint()), probe_prompts.built_in()
    memory, disk = (verify_verify.outcome(folder, records, from_disk=way) for way in (False, True))
    assert memory.answers == disk.answers and memory.ids == disk.ids
    assert comparison.compare(memory.logits, disk.logits).largest == 0
    assert memory.dtype == disk.dtype == torch.float32


def test_quantized_weights_go_onto_the_device_that_was_asked_for(make_int4_checkpoint, monkeypatch):
    load, devices = loading.load_model, []

    def spy(path, **options):
        devices.append(options["device"])
        return load(path, **options)

    monkeypatch.setattr(loading, "load_model", spy)
    records = probe_prompts.built_in()[:1]
    assert verify_verify.outcome(ModelFolder.open(make_int4_checkpoint()), records, device="cpu").is_quantized
    assert devices == [torch.device("cpu")]


def test_another_quantization_is_a_difference(make_checkpoint, make_int4_checkpoint):
    lines = verify_verify.different_files(ModelFolder.open(make_checkpoint()), ModelFolder.open(make_int4_checkpoint()))
    assert lines[0] == "config.json: quantization None / gptq"


@pytest.mark.parametrize("size", [4, 1000])
def test_damaged_weights_are_named_however_they_are_read(make_checkpoint, tmp_path, size):
    folder = shutil.copytree(make_checkpoint(), tmp_path / "damaged")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:size])
    for flags in ([], ["--from_disk"]):
        with pytest.raises(ValueError, match="damaged: the weights cannot be read"):
            verify.main([str(folder), str(make_checkpoint()), *flags])
