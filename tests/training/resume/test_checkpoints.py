"""Checkpoints on disk: damaged ones are skipped; retention and resuming use the same order."""

import json
import os
import re
import shutil

import pytest

from qwen_vl.training.resume import checkpoints


def test_retention_and_resuming_use_one_order(tmp_path):
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


def damage_weights(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


DAMAGES = {
    "a bit": (damage_weights, "model.safetensors has other content than was written"),
    "half": (lambda folder: os.truncate(folder / "optimizer.pt", 1000), r"optimizer.pt has 1000 bytes, not \d+"),
    "gone": (lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "several": (
        lambda folder: [(folder / name).unlink() for name in ("config.json", "scheduler.pt")],
        "config.json is missing; scheduler.pt is missing",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_skipped(run_of_four, tmp_path, caplog, kind):
    out = shutil.copytree(run_of_four, tmp_path / "out")
    damage, words = DAMAGES[kind]
    assert checkpoints.to_resume(out, "auto").path == str(out / "checkpoint-4")
    damage(out / "checkpoint-4")
    assert checkpoints.to_resume(out, "true").path == str(out / "checkpoint-3")
    assert re.search(rf"checkpoint-4: skipped: {words}", caplog.text)
    assert re.search(r"resuming from \S+checkpoint-3: step 3 of 4 \(complete, \d+ files\)", caplog.text)
    with pytest.raises(ValueError, match=words):
        checkpoints.to_resume(out, out / "checkpoint-4")


def test_what_there_is_to_resume_from(run_of_four, tmp_path, caplog):
    """Check folders of other tools, an empty folder, and a checkpoint that was written but not renamed."""
    out = shutil.copytree(run_of_four, tmp_path / "out")
    (out / ".saving").mkdir()
    (out / "checkpoint-4").rename(out / ".saving" / "checkpoint-4")
    shutil.copytree(out / "checkpoint-3", out / ".saving" / "checkpoint-5", ignore=lambda *_: ["optimizer.pt"])
    assert checkpoints.to_resume(out, "auto").path == str(out / "checkpoint-4")  # killed between two renames
    for name in ("checkpoint-2", "checkpoint-3", "checkpoint-4"):
        (out / name / "manifest.json").unlink()
    (out / "checkpoint-4" / "trainer_state.json").write_text('{"global_step"')
    (out / "checkpoint-3" / "optimizer.pt").unlink()
    shutil.rmtree(out / "checkpoint-1")
    os.utime(out / "checkpoint-2")
    assert checkpoints.to_resume(out, "auto").path == str(out / "checkpoint-2")
    assert "no manifest: it could not be checked" in caplog.text
    assert checkpoints.to_resume(out, None) is checkpoints.to_resume(out, "False") is None
    assert checkpoints.to_resume(tmp_path / "none", "auto") is None
    assert "none: no checkpoint to resume from yet; training starts from the beginning" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"no trainer_state\.json there"):
        checkpoints.to_resume(out, tmp_path)
