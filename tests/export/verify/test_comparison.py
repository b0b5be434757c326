"""The difference of logits."""

import pytest
import torch

from qwen_vl.export.verify import comparison


def test_a_nan_is_no_agreement():
    nan = torch.full((1, 2, 3), float("nan"))
    difference = comparison.compare([torch.ones(1, 2, 3), torch.ones(1, 2, 3)], [torch.ones(1, 2, 3), nan])
    with pytest.raises(ValueError, match="nan"):
        comparison.check(difference, torch.float32, "x")
