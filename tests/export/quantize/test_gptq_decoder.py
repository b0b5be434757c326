"""Work of a quantization on disk: finished blocks belong to the settings that made them."""

import json

import pytest
import torch

from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.export.quantize import gptq_decoder


def test_work_resumes_with_the_same_settings_only(tmp_path):
    settings = {"model": "a", "group_size": 32, "damp": 0.01}
    work = gptq_decoder.open_work(tmp_path / "work", settings)
    assert json.loads((work / gptq_decoder.SETTINGS).read_text()) == settings
    assert gptq_decoder.open_work(work, dict(settings)) == work
    with pytest.raises(ValueError, match="begun with another damp, group_size; resume with the same"):
        gptq_decoder.open_work(work, settings | {"group_size": 64, "damp": 0.1})


def test_the_digest_covers_ids_and_pixels():
    ids, pixels = torch.tensor([[1, 2]]), torch.zeros(1, 3, 2, 2)
    samples = [{"input_ids": ids}, {"input_ids": ids, "pixel_values": pixels}, {"input_ids": ids + 1}]
    samples.append({"input_ids": ids, "pixel_values": pixels + 1})
    assert len({gptq_decoder.digest([sample]) for sample in samples}) == 4
    assert gptq_decoder.digest(samples) == gptq_decoder.digest(list(samples))


def test_shapes_that_do_not_fit_a_group(make_checkpoint):
    disk = DiskModel(make_checkpoint())
    gptq_decoder.check_shapes(disk, 32)
    with pytest.raises(ValueError, match="no groups of 128"):
        gptq_decoder.check_shapes(disk, 128)
