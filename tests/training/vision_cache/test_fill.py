"""Filling a vision cache ahead of a run."""

import shutil

import pytest
import torch
from helpers import runs

from qwen_vl.model.image_loading_qwen import ImageError
from qwen_vl.training.vision_cache import cache, fill


def test_only_missing_images_are_encoded(make_checkpoint, tmp_path):
    """Check the counts, equal images under two names, and features equal to those of the tower."""
    (tmp_path / "images").mkdir()
    first, second = sorted((runs.GOLDEN / "images").glob("*.png"))[:2]
    for name, source in (("a.png", first), ("same.png", first), ("b.png", second)):
        shutil.copy(source, tmp_path / "images" / name)
    tower = fill.load_tower(make_checkpoint(), dtype=torch.float32)
    kept = cache.of_checkpoint(tmp_path / "cache", make_checkpoint(), kind="image_features", dtype=torch.float32)
    options = {"tower": tower, "image_size": 64, "batch_size": 2, "workers": 0}
    assert fill.fill(kept, ["images/a.png", "images/same.png"], [tmp_path], **options) == (1, 0, 0)
    references = ["images/b.png", "images/a.png", "images/b.png"]
    assert fill.fill(kept, references, [tmp_path], **options) == (1, 1, 0)
    assert fill.fill(kept, references, [tmp_path], **options) == (0, 2, 0)
    _, values = fill.Images(["images/b.png"], [tmp_path], kept, 64)[0]
    with torch.no_grad():
        expected = tower(values[None])[0]
    torch.testing.assert_close(kept.get(kept.key("images/b.png", [tmp_path])), expected)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png"):
        fill.fill(kept, ["images/broken.png"], [tmp_path], **options)
