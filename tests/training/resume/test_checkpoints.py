"""Checkpoints on disk: retention and resuming use the same order."""

import json
import os

from qwen_vl.training.resume import checkpoints


def test_what_is_kept_is_what_a_run_goes_on_from(tmp_path):
    """Check that the order follows the manifests and not the times of the folders, which a copy changes."""
    for number, (step, written) in enumerate([(30, 1.0), (10, 2.0), (20, 3.0), (40, 4.0)]):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / checkpoints.MANIFEST).write_text(json.dumps({"written": written, "files": {}}))
        os.utime(folder, (1e9 - number, 1e9 - number))  # the newest looks oldest
    (tmp_path / "checkpoint-old").mkdir()
    order = checkpoints.found(tmp_path)
    assert [path.name for path in order] == ["checkpoint-40", "checkpoint-20", "checkpoint-10", "checkpoint-30"]
    checkpoints.drop_old_checkpoints(order[0], 3, best=tmp_path / "checkpoint-30")
    assert checkpoints.found(tmp_path) == [order[0], order[1], order[3]]
    checkpoints.drop_old_checkpoints(order[0], 1)
    assert checkpoints.found(tmp_path) == [order[0]] and (tmp_path / "checkpoint-old").is_dir()
