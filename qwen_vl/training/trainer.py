"""The training step around transformers' Trainer: what decays, what is logged, what stops a run, what is saved."""

import json
import os
import shutil
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from . import tuning

BASE_FILE = "base.json"  # in an adapter folder: which weights the adapter belongs to
STAGING = ".saving"  # a checkpoint is written here, then renamed
CHAT_FORMAT = "chatml"  # what every conversation is trained in


class QWenTrainer(Trainer):
    """Trainer for batches of `ConversationCollator`: names the samples of a bad loss, logs speed, saves atomically."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._seen = {"tokens": 0, "samples": 0}
        self._logged_at = time.perf_counter()

    def get_decay_parameter_names(self, model):
        return tuning.decayed_names(model)

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        tuning.check_groups(self.model if model is None else model, optimizer)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = inputs.pop("ids")
        if model.training:
            self._seen["tokens"] += int(inputs["attention_mask"].sum())
            self._seen["samples"] += len(ids)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if not torch.isfinite(loss):
            step, samples = self.state.global_step + 1, ", ".join(map(repr, ids))
            raise ValueError(
                f"step {step}: the loss is {loss.item()} for samples {samples}; "
                "lower --learning_rate, use --bf16 instead of --fp16, or look at these samples"
            )
        return result

    def log(self, logs, start_time=None):
        if "loss" in logs:
            now = time.perf_counter()
            seconds = now - self._logged_at
            logs["tokens_per_second"] = round(self._seen["tokens"] / seconds, 1)
            logs["samples_per_second"] = round(self._seen["samples"] / seconds, 2)
            self._seen, self._logged_at = {"tokens": 0, "samples": 0}, now
        super().log(logs, start_time)

    def _get_output_dir(self, trial):
        return getattr(self, "_staging_dir", None) or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        """Write checkpoint-N under a temporary name and rename it: a folder of that name is always complete."""
        final_dir = Path(super()._get_output_dir(trial))
        staging = final_dir / STAGING
        name = f"checkpoint-{self.state.global_step}"
        self._staging_dir, limit = str(staging), self.args.save_total_limit
        try:
            shutil.rmtree(staging, ignore_errors=True)
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self._settle_best(staging / name, final_dir)
                shutil.rmtree(final_dir / name, ignore_errors=True)
                os.replace(staging / name, final_dir / name)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"{final_dir / name}: could not be written ({error}); earlier checkpoints are untouched"
            ) from error
        finally:
            self._staging_dir = None
            shutil.rmtree(staging, ignore_errors=True)
        if self.args.should_save and limit:
            self._drop_old_checkpoints(final_dir, limit)

    def _settle_best(self, staged, final_dir):
        """Record the best checkpoint by its final name, in memory and in the staged trainer state."""
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(final_dir / f"checkpoint-{self.state.best_global_step}")
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def _drop_old_checkpoints(self, final_dir, limit):
        """Delete the oldest checkpoints beyond `limit`, but neither the best nor the newest."""
        found = sorted(final_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
        kept = {found[-1], Path(self.state.best_model_checkpoint or found[-1])}
        removable = [path for path in found if path not in kept]
        for path in removable[: max(len(found) - limit, 0)]:
            shutil.rmtree(path)


class ProgressBar(ProgressCallback):
    """One bar on rank zero that carries the newest loss, learning rate and speed, in place of a line for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or "loss" not in (logs or {}):
            return super().on_log(args, state, control, logs=logs, **kwargs)
        shown = {
            "loss": f"{logs['loss']:.4f}",
            "lr": f"{logs['learning_rate']:.2e}",
            "tok/s": f"{logs['tokens_per_second']:.0f}",
            "smp/s": f"{logs['samples_per_second']:.1f}",
        }
        self.training_bar.set_postfix(shown)
        if self.training_bar.disable or not self.training_bar.fp.isatty():
            self.training_bar.write(
                f"step {state.global_step}/{state.max_steps}  " + "  ".join(map(" ".join, shown.items()))
            )


def checkpoint_to_resume(output_dir, requested):
    """The checkpoint folder to continue from, or None; `requested` is a path, "True"/"auto" for the newest, or nothing.

    Raises FileNotFoundError for a path that holds no trainer state.
    """
    if not requested or str(requested).lower() == "false":
        return None
    if str(requested).lower() in ("true", "auto"):
        return get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None
    if not (Path(requested) / "trainer_state.json").is_file():
        raise FileNotFoundError(
            f"--resume_from_checkpoint {requested}: no trainer_state.json there; give a checkpoint-N folder"
        )
    return str(requested)


def save_final(model, tokenizer, output_dir, *, dtype, base=None):
    """Write the trained model or adapter with its tokenizer into `output_dir`; files appear only when all are complete.

    dtype: what the weights are stored in. base: {"name", "fingerprint"} of the weights under an adapter.
    Raises OSError when the folder cannot be written; then nothing half-written stays.
    """
    output_dir = Path(output_dir)
    staging = output_dir / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        if isinstance(model, PeftModel):
            model.save_pretrained(staging)
            (staging / BASE_FILE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
        else:
            model.generation_config.chat_format = CHAT_FORMAT
            model.to(dtype).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for file in staging.iterdir():
            os.replace(file, output_dir / file.name)
    except (OSError, RuntimeError) as error:
        raise OSError(f"{output_dir}: could not be written ({error}); free some space and save again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
