"""Every private name of transformers' Trainer that this project uses, each under a public name of ours.

Trainer has no public hooks around saving, loading, logging and epochs. Subclasses override the methods here and call
`super()`; no other file uses the private names. They may change with any release of transformers, so
tests/training/test_trainer_hooks.py compares them with the installed release, and pyproject.toml pins those tested.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer


class HookedTrainer(Trainer):
    """Trainer whose private hooks and counters have public names."""

    # ---- hooks that transformers calls

    def _run_epoch(self, **arguments: Any) -> None:
        self.run_epoch(**arguments)

    def run_epoch(
        self,
        *,
        epoch: int,
        train_dataloader: DataLoader,
        steps_in_epoch: int,
        num_update_steps_per_epoch: int,
        **kwargs: Any,
    ) -> None:
        """Train one epoch."""
        super()._run_epoch(
            epoch=epoch,
            train_dataloader=train_dataloader,
            steps_in_epoch=steps_in_epoch,
            num_update_steps_per_epoch=num_update_steps_per_epoch,
            **kwargs,
        )

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: object,
    ) -> tuple[int, int]:
        start = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        return self.first_epoch(start[0]), start[1]

    def first_epoch(self, epoch: int) -> int:
        """Return the epoch in which training begins; `epoch` is the one that transformers computed."""
        return epoch

    def _get_output_dir(self, trial: object) -> str:
        return self.checkpoint_parent() or super()._get_output_dir(trial)

    def checkpoint_parent(self) -> str | None:
        """Return the folder in which checkpoint-N is written; None for --output_dir."""
        return None

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        self.write_checkpoint(model, trial)

    def write_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Write checkpoint-N."""
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self.args.should_save:
            self.write_model(output_dir or self.args.output_dir, state_dict)

    def write_model(self, folder: str, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Write the model into a folder; only one rank calls it."""
        super()._save(folder, state_dict)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.push_checkpoint(checkpoint_folder)

    def push_checkpoint(self, folder: str) -> None:
        """Start the upload of a checkpoint to the Hub."""
        super()._push_from_checkpoint(folder)

    def _finish_current_push(self) -> None:
        self.finish_push()

    def finish_push(self) -> None:
        """Wait until the current uploads to the Hub have ended."""
        super()._finish_current_push()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.load_weights(resume_from_checkpoint, model)

    def load_weights(self, checkpoint: str, model: nn.Module | None) -> None:
        """Load the weights of a checkpoint into the model."""
        super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.load_optimizer(checkpoint)

    def load_optimizer(self, checkpoint: str | None) -> None:
        """Load the state of optimizer and schedule; do nothing without a checkpoint."""
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.load_random_state(checkpoint)

    def load_random_state(self, checkpoint: str | None) -> None:
        """Load the random states of a checkpoint; do nothing without one."""
        super()._load_rng_state(checkpoint)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.before_log_save_evaluate()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def before_log_save_evaluate(self) -> None:
        """Run between a step and its log line, evaluation and checkpoint."""

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        return self.count_targets(batch_samples, device)

    def count_targets(self, batches: list, device: torch.device) -> torch.Tensor | int | None:
        """Return the number of targets of a step over all ranks."""
        return super()._get_num_items_in_batch(batches, device)

    def _determine_best_metric(self, metrics: dict[str, float], trial: object) -> bool:
        return self.is_best(metrics, trial)

    def is_best(self, metrics: dict[str, float], trial: object = None) -> bool:
        """Return whether an evaluation is the best so far; if so, remember it."""
        return super()._determine_best_metric(metrics, trial)

    # ---- what transformers counts

    def evaluate_now(self) -> dict[str, float]:
        """Evaluate as Trainer does between two steps, and return the metrics."""
        return self._evaluate(None, None)

    @property
    def loader_batch_size(self) -> int:
        """Return how many samples or rows one rank takes at a time."""
        return self._train_batch_size

    @property
    def first_step(self) -> int:
        """Return the number of steps done before this process began to train."""
        return self._initial_global_step

    @property
    def unlogged_loss(self) -> torch.Tensor:
        """Return the sum of this rank's losses since the last log line."""
        return self._tr_loss

    @property
    def last_logged_step(self) -> int:
        """Return the step of the last log line."""
        return self._globalstep_last_logged

    @property
    def logged_loss(self) -> float:
        """Return the sum of the losses of all log lines."""
        return self._total_loss_scalar

    def take_up_losses(self, total: float, since_step: int) -> None:
        """Restore the losses that a checkpoint had not logged: their sum, and the step of its last log line."""
        self._tr_loss += total
        self._globalstep_last_logged = since_step
