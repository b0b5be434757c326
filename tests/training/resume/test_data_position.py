"""The position in the data: steps that are left, and other data than those of the checkpoint."""

import pytest
from helpers import runs

from qwen_vl.training.resume.data_position import DataPosition


def test_other_data_are_noticed(run_of_four, make_checkpoint, tmp_path):
    data = runs.write_data(tmp_path, [*runs.TEXTS[:-1], (None, "?", "!")])
    path = {"resume_from_checkpoint": run_of_four / "checkpoint-3"}
    with pytest.raises(ValueError, match="the data, or how they are read changed since the checkpoint was made"):
        runs.train(make_checkpoint(), tmp_path / "out", data_path=data, **path)
    with pytest.raises(ValueError, match="--train_sampling_strategy, --data_seed"):
        runs.train(make_checkpoint(), tmp_path / "out", "--group_by_length", "--data_seed", "1", **path)
    out = runs.train(make_checkpoint(), tmp_path / "out", "--ignore_data_skip", "True", data_path=data, **path)
    assert len(runs.losses(out)) == 4


def test_steps_that_are_left():
    place = DataPosition({"size": 10}, per_step=4, epoch=1, seen=3)
    assert [place.steps_to(epochs) for epochs in (0.5, 1, 1.5, 2, 2.5, 3)] == [0, 0, 2, 2, 4, 5]
