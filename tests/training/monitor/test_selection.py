"""Selection of the best checkpoint by a metric of the evaluation."""

import pytest
from helpers import runs


def test_a_metric_that_an_evaluation_lacks_is_one_line(make_checkpoint, tmp_path, monkeypatch):
    """Check the message for a metric whose absence was not known at the start."""
    monkeypatch.setattr("qwen_vl.training.monitor.selection.MEASURED", ("accuracy",))
    settings = {"eval_data_path": runs.write_data(tmp_path), "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match="--metric_for_best_model accuracy: evaluation measured eval_loss, "):
        runs.train(make_checkpoint(), tmp_path / "out", **settings, metric_for_best_model="accuracy")
