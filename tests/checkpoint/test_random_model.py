"""The maker of small random checkpoints."""

import pytest
import torch

from qwen_vl.checkpoint.random_model import PLAIN_STD, weaken_plain_patches


def test_random_patch_filters_see_edges_and_hardly_plain_patches():
    """Compare the spread of outputs for a plain patch of value 1 and for a checkerboard of 1 and -1."""
    torch.manual_seed(0)
    filters = torch.empty(4000, 3, 8, 8, dtype=torch.float64).normal_(std=192**-0.5)  # as in the model
    weaken_plain_patches(filters)
    board = torch.arange(8)[:, None] + torch.arange(8) & 1
    answers = (filters.sum((1, 2, 3)), (filters * (1 - 2 * board)).sum((1, 2, 3)))
    assert [answer.std().item() for answer in answers] == pytest.approx([PLAIN_STD, 1], rel=0.1)
