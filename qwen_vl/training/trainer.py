"""The training step around transformers' Trainer: what decays, what is logged, what stops a run, what is saved."""

import logging
import os
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from qwen_vl.data.packing import PackedDataset
from qwen_vl.data.sampling import LengthGroupedSampler

from . import loading, losses, saving, tuning
from .metering import SourceMeter, SpeedMeter

logger = logging.getLogger(__name__)


class QWenTrainer(Trainer):
    """Trainer for batches of `ConversationCollator`: names the samples of a bad loss, logs speed, saves atomically.

    source_names: of the sources whose loss and tokens are logged apart, if there are several. is_weighted: whether
    samples may have other weights than 1, so that targets are counted by weight.
    """

    def __init__(self, *, tokenizer, base=None, source_names=(), is_weighted=False, **kwargs):
        use_cache = kwargs["model"].config.use_cache
        super().__init__(**kwargs)  # without a processing_class, whose special tokens it would write into the configs
        self.model.config.use_cache = use_cache  # Trainer switches it off, and would save that
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(ProgressBar)
        self._tokenizer, self._base = tokenizer, base
        self._speed, self._is_weighted = SpeedMeter(), is_weighted
        self._sources = SourceMeter(source_names) if len(source_names) > 1 else None
        self._staging_dir = None

    def get_decay_parameter_names(self, model):
        return tuning.decayed_names(model)

    def _get_train_sampler(self, train_dataset=None):
        data = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length":
            sizes = data.lengths
        elif isinstance(data, PackedDataset) and self.args.world_size > 1:
            sizes = data.num_pictures  # rows are equally long; ranks that also see as many pictures wait for nobody
        else:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(sizes, self.args.train_batch_size * self.args.world_size, seed=seed)

    def get_train_dataloader(self):
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        return DataLoader(  # as it is: each rank reads a share of its own, which nobody must deal out again
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return super().get_batch_samples(self._speed.timed(epoch_iterator), num_batches, device)

    def _get_num_items_in_batch(self, batch_samples, device):
        """The targets of a step over all ranks, each counted by its weight."""
        count = super()._get_num_items_in_batch(batch_samples, device)
        if count is None or not self._is_weighted:
            return count
        extra = sum(losses.extra_weight(batch) for batch in batch_samples).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            extra = self.accelerator.gather(extra).sum()
        return count + extra

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        tuning.check_groups(self.model if model is None else model, optimizer)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, details = inputs["ids"], {key: inputs[key] for key in losses.DETAILS if key in inputs}
        if model.training:
            self._speed.add(inputs)
        inputs = {key: value for key, value in inputs.items() if key != "ids" and key not in details}
        inputs["use_cache"] = False
        if details:
            result = self._detailed_loss(model, inputs, details, return_outputs, num_items_in_batch)
        else:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if not torch.isfinite(loss):
            step, samples = self.state.global_step + 1, ", ".join(map(repr, ids))
            raise ValueError(
                f"step {step}: the loss is {loss.item()} for samples {samples}; "
                "lower --learning_rate, use --bf16 instead of --fp16, or look at these samples"
            )
        return result

    def _detailed_loss(self, model, inputs, details, return_outputs, num_items_in_batch):
        """The loss as `compute_loss` has it, from that of each target."""
        outputs = model(**inputs, per_target_loss=True)
        meter = self._sources if model.training else None
        loss = losses.reduced(outputs.loss, inputs["labels"], details, num_items=num_items_in_batch, meter=meter)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # items of all ranks; gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= self._speed.take()
            if self._sources:
                logs |= self._sources.take(self._sum_over_ranks)
        super().log(logs, start_time)

    def _sum_over_ranks(self, tensor):
        return self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="sum")

    def _get_output_dir(self, trial):
        return self._staging_dir or super()._get_output_dir(trial)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with resuming(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with resuming(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with resuming(checkpoint):
            super()._load_rng_state(checkpoint)

    def _save(self, output_dir=None, state_dict=None):
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            saving.write_folder(self.model, self._tokenizer, folder, base=self._base, state_dict=state_dict)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _save_checkpoint(self, model, trial):
        """Write checkpoint-N under a temporary name and rename it: a folder of that name is always complete."""
        final = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        main, everyone = self.args.should_save, self.accelerator.wait_for_everyone
        with saving.staged(final.with_name(".saving"), final, owner=main) as staging:
            everyone()  # the folder is there before any rank writes, and renamed when all have written
            self._staging_dir = str(staging)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging_dir = None
            everyone()
            if main:
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(final)
                    self.state.save_to_json(str(staging / final.name / TRAINER_STATE_NAME))
                saving.put_in_place(staging / final.name, final)
        if self.args.should_save and self.args.save_total_limit:
            saving.drop_old_checkpoints(final, self.args.save_total_limit, best=self.state.best_model_checkpoint)


class ProgressBar(ProgressCallback):
    """A bar on a terminal, one line for each log elsewhere: step, loss, learning rate, speed."""

    SHOWN = {  # noqa: RUF012 - what is logged: how it is shown
        "loss": "loss {:.4f}",
        "eval_loss": "evaluation loss {:.4f}",
        "learning_rate": "lr {:.2e}",
        "tokens_per_second": "tokens/s {:.0f}",
        "samples_per_second": "samples/s {:.2f}",
        "data_wait": "waiting for data {:.0%}",
        "train_loss": "mean loss {:.4f}",
        "train_runtime": "seconds {:.0f}",
    }

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = 0
        if state.is_world_process_zero:  # disable=None: no bar where nobody watches
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=args.disable_tqdm or None)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.training_bar is not None and not self.training_bar.disable:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        shown = [text.format(float(logs[key])) for key, text in self.SHOWN.items() if key in logs]
        shown += [f"{key} {value:.4f}" for key, value in logs.items() if key.startswith("loss/")]
        if "loss" in logs:
            self.training_bar.set_postfix_str(", ".join(shown))
        if "loss" not in logs or self.training_bar.disable:
            tqdm.write(f"step {state.global_step}/{state.max_steps}  {'  '.join(shown)}", file=sys.stderr)


@contextmanager
def resuming(checkpoint):
    """Within this block, a checkpoint that is damaged or of another kind of run is one clear ValueError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: damaged, or made with other flags than this run's ({reason}); "
            "use the flags that it was made with, or an earlier checkpoint"
        ) from error


def checkpoint_to_resume(output_dir, requested):
    """The checkpoint folder to continue from, or None; `requested` is a path, "True"/"auto" for the newest, or nothing.

    Raises FileNotFoundError for a path that holds no trainer state, ValueError for one that is damaged.
    """
    if not requested or str(requested).lower() == "false":
        return None
    if str(requested).lower() in ("true", "auto"):
        requested = get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None
        if requested is None:
            logger.warning("%s: no checkpoint to resume from yet; training starts from the beginning", output_dir)
            return None
    folder = Path(requested)
    if not folder.is_dir() or loading.read_json(folder, TRAINER_STATE_NAME) is None:
        raise FileNotFoundError(
            f"--resume_from_checkpoint {requested}: no {TRAINER_STATE_NAME} there; give a checkpoint-N folder"
        )
    if not any(folder.glob("optimizer*")) and not any(folder.glob("global_step*")):  # the latter is DeepSpeed's
        raise ValueError(
            f"--resume_from_checkpoint {requested}: without the optimizer's state, as of a run with --save_only_model, "
            "nothing can be resumed; train its model further as --model_name_or_path"
        )
    return str(requested)
