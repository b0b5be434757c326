"""Filling a vision cache ahead of a run."""

import shutil

import pytest
import torch
from helpers import runs

from qwen_vl.model.image_loading_qwen import ImageError
from qwen_vl.training.vision_cache import cache, fill


def test_only_missing_images_are_encoded(make_checkpoint, tmp_path):
    """Check the counts, equal images under two names, and features equal to those of the tower."""
    first, second = sorted((runs.GOLDEN / "images").glob("*.png"))[:2]
    a, same, b = (str(tmp_path / name) for name in ("a.png", "same.png", "b.png"))
    for path, source in ((a, first), (same, first), (b, second)):
        shutil.copy(source, path)
    tower = fill.load_tower(make_checkpoint(), dtype=torch.float32)
    kept = cache.of_checkpoint(tmp_path / "cache", make_checkpoint(), kind="image_features", dtype=torch.float32)
    options = {"tower": tower, "image_size": 64, "batch_size": 2, "workers": 0}
    assert fill.fill(kept, [a, same], **options) == (1, 0, 0)
    assert fill.fill(kept, [b, a, b], **options) == (1, 1, 0)
    assert fill.fill(kept, [b, a, b], **options) == (0, 2, 0)
    _, values = fill.Images([b], kept, 64)[0]
    with torch.no_grad():
        expected = tower(values[None])[0]
    torch.testing.assert_close(kept.get(kept.key(b)), expected)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png"):
        fill.fill(kept, [str(tmp_path / "broken.png")], **options)
