"""The dtypes of model folders, by the names of users and of safetensors."""

import json

import pytest
import torch
from safetensors.torch import save

from qwen_vl.checkpoint import dtypes


def test_a_name_is_that_of_torch():
    assert dtypes.CHOICES[0] == dtypes.dtype_or_auto("auto") == "auto"
    for name in dtypes.CHOICES[1:]:
        assert dtypes.dtype_or_auto(name) is getattr(torch, name)


@pytest.mark.parametrize("name", dtypes.STORED)
def test_a_name_in_a_file_is_that_of_safetensors(name):
    content = save({"x": torch.zeros(2, dtype=dtypes.STORED[name])})
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["x"]["dtype"] == name
