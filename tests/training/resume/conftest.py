"""Fixtures of the tests of resuming."""

import pytest
from helpers import runs

from qwen_vl.training import trainer


@pytest.fixture
def seen(monkeypatch):
    """Return a list that gets the ids of each training batch; `seen.at[step] = function` is called before that step."""

    class Seen(list):
        at = {}  # noqa: RUF012

    batches, plain = Seen(), trainer.QWenTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            batches.at.pop(self.state.global_step, lambda: None)()
            batches.append(list(inputs["ids"]))
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.QWenTrainer, "compute_loss", compute_loss)
    Seen.at = {}
    return batches


@pytest.fixture(scope="session")
def run_of_four(make_checkpoint, tmp_path_factory):
    """Return the output folder of a run of 4 steps, with a checkpoint after each. Do not write into it."""
    out = tmp_path_factory.mktemp("four") / "out"
    return runs.train(make_checkpoint(), out, save_strategy="steps", save_steps=1)
