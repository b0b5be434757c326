"""The Trainer of this project: loss, logging, optimizer groups and checks around the training step."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput

from qwen_vl.data.collator import HOST_KEYS
from qwen_vl.training.distributed.host_memory import keep_freed_memory
from qwen_vl.training.distributed.text_only_steps import (
    IMAGES,
    VisionKeeper,
    run_vision_always,
    trains_nothing_else,
    with_zero_gradient,
)
from qwen_vl.training.held_out.answers import Asker
from qwen_vl.training.monitor import reporting
from qwen_vl.training.monitor.callbacks import MetricsFile, ProgressBar
from qwen_vl.training.monitor.step_profiler import PhaseMeter
from qwen_vl.training.monitor.throughput import SourceMeter, SpeedMeter
from qwen_vl.training.objectives import sft
from qwen_vl.training.resume.resumable_trainer import ResumableTrainer
from qwen_vl.training.vision_cache.cache import CacheFiller, VisionCache

from . import param_groups, tuning
from .untrained import UntrainedCheck


class QWenTrainer(ResumableTrainer):
    """Trainer for batches of `ConversationCollator`; it logs throughput and names the samples of a non-finite loss.

    source_names: the sources whose loss and tokens are logged separately, if there are several. is_weighted: whether
    samples may have weights other than 1, so targets are counted by weight. rates: `param_groups.Rates`, if parts of
    the model have their own learning rates. vision_cache: a VisionCache; features of missing images are added to it.
    asker: it lets the model answer held-out questions at each evaluation.
    """

    def __init__(
        self,
        *,
        source_names: Sequence[str] = (),
        is_weighted: bool = False,
        rates: param_groups.Rates | None = None,
        vision_cache: VisionCache | None = None,
        asker: Asker | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs["args"].device.type == "cpu":
            keep_freed_memory()
        use_cache = kwargs["model"].config.use_cache
        super().__init__(**kwargs)
        self.model.config.use_cache = use_cache  # Trainer sets it to False and would save that
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self._progress_bar = ProgressBar()
        self.add_callback(self._progress_bar)
        self.add_callback(MetricsFile)
        reporting.guard(self.callback_handler.callbacks)
        if self.args.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self._is_weighted, self._asker = is_weighted, asker
        dtype = tuning.compute_dtype(bf16=self.args.bf16, fp16=self.args.fp16)
        self._speed = SpeedMeter(self.model, self.args.device, dtype)
        self._phases = PhaseMeter(
            self.model,
            self.args.device,
            every=0 if self.args.torch_compile else self.args.sample_phases_every,
            is_distributed=self.args.world_size > 1,
        )
        self._held_out = sft.HeldOutLoss(self.accelerator.gather_for_metrics)
        self._vision = VisionKeeper()
        # Several ranks run the tower anyway.
        self._only_vision = trains_nothing_else(self.model) and not torch.distributed.is_initialized()
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            run_vision_always(self.model)
        self._filler = vision_cache and CacheFiller(vision_cache, self.model)
        if self._filler:
            self.add_callback(self._filler)
        is_whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        self._untrained = UntrainedCheck(by_hooks=self.is_deepspeed_enabled, compares=is_whole)
        self.add_callback(self._untrained)
        # (ids, loss) of the micro-batches of this step
        self._unchecked_losses: list[tuple[list[str], torch.Tensor]] = []
        self._sources = SourceMeter(source_names) if len(source_names) > 1 else None
        self._rates = rates or param_groups.Rates(self.args.learning_rate)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, and always close the progress bar."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress_bar.close()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that weight decay applies to."""
        return param_groups.decayed_names(model)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple:
        """Return the micro-batches of a step and how many targets they have."""
        self._phases.begin(self.state.global_step)
        samples = super().get_batch_samples(self._speed.timed(epoch_iterator), num_batches, device)
        self._phases.mark("data")
        self._vision.begin(samples[0])
        self._untrained.begin(samples[0])
        return samples

    def check_trained(self) -> None:
        """Raise ValueError if a parameter should have changed but did not. Call it after the result is saved."""
        if self._untrained.problem:
            raise ValueError(f"{self.args.output_dir}: {self._untrained.problem}")

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of a micro-batch, after its backward pass."""
        self._speed.add(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._phases.mark_backward()
        if self.accelerator.sync_gradients:  # only once a step, since it waits for the device
            self._check_losses()
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: `SpeedMeter` counts operations. transformers would visit all parameters for each batch."""
        return 0

    def store_flos(self) -> None:
        """Store the number of operations so far in the state of the run."""
        self.current_flos = self._speed.operations()
        super().store_flos()

    def before_log_save_evaluate(self) -> None:
        """Count the step, without the time of its log line, checkpoint and evaluation."""
        self._phases.end()
        self._speed.count_step()
        if not self.control.should_log and (self.control.should_save or self.control.should_evaluate):
            self._speed.stop()

    def count_targets(self, batches: list, device: torch.device) -> torch.Tensor | int | None:
        """Return the sum of the target weights of a step over all ranks."""
        count = super().count_targets(batches, device)
        if count is None or not self._is_weighted:
            return count
        extra = sum((sft.extra_weight(batch) for batch in batches), start=torch.tensor(0.0)).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            extra = self.accelerator.gather(extra).sum()
        return count + extra

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer, with groups split by learning rate."""
        is_new, optimizer = self.optimizer is None, super().create_optimizer(model)
        model = self.model if model is None else model
        if is_new:
            param_groups.split_groups(optimizer, model, self._rates)
            self._vision.watch(optimizer, model)
        param_groups.check_groups(model, optimizer)
        return optimizer

    def is_best(self, metrics: dict[str, float], trial: object = None) -> bool:
        """Return whether an evaluation is the best so far. Raise ValueError if it lacks --metric_for_best_model."""
        try:
            return super().is_best(metrics, trial)
        except KeyError as error:
            known = ", ".join(name for name in metrics if name.startswith("eval_"))
            raise ValueError(
                f"--metric_for_best_model {self.args.metric_for_best_model}: evaluation measured {known}; give one"
            ) from error

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss of a batch, and the model's outputs if `return_outputs` is set."""
        ids, details = inputs["ids"], {key: inputs[key] for key in sft.DETAILS if key in inputs}
        self._phases.mark("other")
        if self._filler:
            self._filler.expect(inputs.get("image_keys"))
        inputs = {key: value for key, value in inputs.items() if key not in (*HOST_KEYS, *details)}
        inputs["use_cache"] = False
        if model.training:  # rows are right-padded, so training needs no attention mask
            inputs.pop("attention_mask", None)
        if details or (not model.training and self.args.prediction_loss_only):  # no logits needed
            loss, outputs = self._detailed_loss(model, inputs, details, num_items_in_batch)
        else:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self._only_vision and model.training and not any(key in inputs for key in IMAGES):
            loss = with_zero_gradient(loss, self.model)
        self._phases.mark("loss")
        self._unchecked_losses.append((ids, loss.detach()))
        if not model.training:
            self._check_losses()
        return (loss, outputs) if return_outputs else loss

    def _check_losses(self) -> None:
        """Raise ValueError, naming the samples, if a loss is not finite."""
        unchecked, self._unchecked_losses = self._unchecked_losses, []
        values = torch.stack([loss for _, loss in unchecked]).tolist()
        for (ids, _), value in zip(unchecked, values, strict=True):
            if not math.isfinite(value):
                step, samples = self.state.global_step + 1, ", ".join(map(repr, ids))
                raise ValueError(
                    f"step {step}: the loss is {value} for samples {samples}; "
                    "lower --learning_rate, use --bf16 instead of --fp16, or look at these samples"
                )

    def _detailed_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        details: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        """Return the loss, from the loss of each target, and the model's outputs."""
        outputs = model(**inputs, per_target_loss=True)
        meter = self._sources if model.training else None
        if not model.training and self.args.prediction_loss_only:
            self._held_out.add(outputs.loss.detach(), inputs["target_index"], inputs["labels"], details)
        loss = sft.reduced(outputs.loss, inputs["target_index"], details, num_items=num_items_in_batch, meter=meter)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # num_items counts all ranks; gradients are averaged
        return loss, outputs

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate with a loss that is the mean over all targets; transformers averages the means of batches."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.args.prediction_loss_only:
            output.metrics[f"{metric_key_prefix}_loss"] = self._held_out.take()
        if self._asker and metric_key_prefix == "eval":
            output.metrics.update(self._ask(self._asker))
        return output

    def _ask(self, asker: Asker) -> dict[str, float]:
        """Let the model answer the held-out questions, and return the entries of the log."""
        if self._filler:
            self._filler.expect(None)  # these images are not those of a batch
        logs = asker.ask(
            self.model,
            step=self.state.global_step,
            autocast=self.accelerator.autocast(),
            on_progress=self._progress_bar.show_answered,
        )
        return {f"eval_{name}": value for name, value in logs.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line; a line with a loss also gets throughput, phases and sources."""
        if "train_loss" in logs:
            self._correct_mean(logs)
        if "loss" in logs:
            logs |= self._speed.take(self._sum_over_ranks if self.args.world_size > 1 else None)
            logs |= self._phases.take()
            if self._sources:
                logs |= self._sources.take(self._sum_over_ranks)
        super().log(logs, start_time)

    def _sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="sum")

    def push_checkpoint(self, folder: str) -> None:
        """Start the upload of a checkpoint to the Hub once it is renamed; a failure does not end the training."""
        if self._staging_dir is None:
            with reporting.warning("--push_to_hub: a checkpoint was not sent"):
                super().push_checkpoint(folder)

    def finish_push(self) -> None:
        """Wait for the current uploads to the Hub; a failure does not end the training."""
        with reporting.warning("--push_to_hub: not all was sent"):
            super().finish_push()
            for job in getattr(getattr(self, "push_in_progress", None), "jobs", []):
                job.result()

    def push_result(self) -> None:
        """Send the output folder with the final model to the Hub; a failure is a warning. Call it on rank 0."""
        if not self.args.push_to_hub:
            return
        name, folder = self.hub_model_id, self.args.output_dir
        then = f"it is in {folder}: send it with `hf upload {name} {folder} --exclude 'checkpoint-*'`"
        with reporting.warning("the final model was not sent to the Hub", then):
            transformers.trainer.hf_api().upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message="End of training",
                token=self.args.hub_token,
                revision=self.args.hub_revision,
                ignore_patterns=["_*", ".*", f"{PREFIX_CHECKPOINT_DIR}-*"],
            )
