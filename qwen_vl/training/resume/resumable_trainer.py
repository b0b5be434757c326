"""A Trainer that resumes exactly from a checkpoint and writes only complete checkpoints."""

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from qwen_vl.adapters.adapter import Base
from qwen_vl.checkpoint import saving
from qwen_vl.checkpoint.files import read_json_or_none
from qwen_vl.data.dataset import SampleDataset
from qwen_vl.data.packing import PackedDataset
from qwen_vl.data.samplers import LengthGroupedSampler, RankBatches, shuffled
from qwen_vl.model import QWenTokenizer
from qwen_vl.training import final_model, tuning
from qwen_vl.training.trainer_hooks import HookedTrainer

from . import checkpoints, data_position, settings, signals
from .data_position import TrainData
from .loaders import TrainLoader, end_workers

logger = logging.getLogger(__name__)


class ResumableTrainer(HookedTrainer):
    """Trainer that resumes exactly (data order, random states, logged losses) with any number of workers and ranks.

    run_state.json in a checkpoint holds what transformers does not save: the position in the data, the losses since the
    last log line, the number of ranks. SIGTERM and SIGINT end a run with a checkpoint.
    tokenizer, base: written with the model, see `final_model.write_folder`. made_with: further entries of
    run_state.json, such as the "settings" of the run; see `resume.settings`.
    """

    _position: data_position.DataPosition  # set by `get_train_dataloader`, before anything reads it

    def __init__(
        self,
        *,
        tokenizer: QWenTokenizer,
        base: Base | None = None,
        made_with: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # without a processing_class, whose special tokens it would write into the configs
        self._tokenizer, self._base, self._made_with = tokenizer, base, made_with or {}
        if made_with:  # `resume.settings` reports how the flags differ from a checkpoint's
            logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
        self._anew = self.args.ignore_data_skip  # the user asks to start the data of the epoch anew
        self.args.ignore_data_skip = True  # our loaders start at the position, so no batch is built and skipped
        self._resumed: dict[str, Any] = {}  # the run state of the checkpoint; empty in a new run
        self._staging_dir: str | None = None  # while a checkpoint is written
        self._loaders: list[DataLoader] = []  # those that may have persistent workers
        self._stop = signals.StopOnSignal()
        # It comes first, since other callbacks read the epoch.
        self.callback_handler.callbacks.insert(0, Bookkeeping(self))
        self.add_callback(self._stop)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """Train, from a checkpoint if one is given.

        Raise ValueError if the checkpoint does not fit or no step was trained, ConnectionError if other ranks are lost.
        """
        self._resumed = checkpoints.run_state(resume_from_checkpoint) if resume_from_checkpoint else {}
        before, now = self._resumed.get("world_size"), self.args.world_size
        if self.is_deepspeed_enabled and before not in (None, now):
            raise ValueError(
                f"--resume_from_checkpoint {resume_from_checkpoint}: DeepSpeed wrote it in {before} parts, for as many "
                f"processes, and cannot split it among {now}; start {before}, or continue under FSDP or DDP with "
                "`qwen-vl checkpoint export` of it as --model_name_or_path"
            )
        try:
            with self._stop.listening():
                result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except RuntimeError as error:
            if not saving.is_lost_connection(error):
                raise
            raise ConnectionError(
                f"process {self.args.process_index} of {self.args.world_size} has lost the others at step "
                f"{self.state.global_step + 1} ({str(error).splitlines()[0]}); one of them, or the network, has "
                "failed: see what they wrote. The same command with --resume auto resumes from the last checkpoint"
            ) from error
        finally:
            for loader in self._loaders:
                end_workers(loader)
        if self.state.global_step == 0:
            raise ValueError("no step was trained, as the data gave no batch; nothing is saved")
        newest = checkpoints.found(self.args.output_dir)
        if self._resumed and newest:
            self._drop_old_checkpoints(newest[0])  # a run killed at that moment has not done so
        return result

    def exit_if_stopped(self) -> None:
        """Exit with 128 + the number of the signal if a signal ended the training."""
        if self._stop.signal is None:
            return
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            step, folder = self.state.global_step, self._checkpoint_dir()
            then = "is complete, and the same command with --resume auto resumes from it"
            if self.args.save_only_model:
                then = "holds the model alone (--save_only_model), so no run can resume from it"
            stopped = f"stopped by {signals.name(self._stop.signal)} after step {step} of {self.state.max_steps}"
            print(f"{stopped}; {folder} {then}", file=sys.stderr)
        sys.exit(128 + self._stop.signal)

    # ---- data

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader with its own random state, so results do not depend on how often data are loaded."""
        data, args = self.train_dataset, self.args
        options = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "worker_init_fn": signals.keep_apart,
            "generator": torch.Generator(),
        }
        self._position = self._place(data)
        if isinstance(data, IterableDataset):  # a stream finds the share of this rank itself
            return DataLoader(data, batch_size=self.loader_batch_size, **options)
        batches = RankBatches(
            len(data),
            self._order(data),
            self.loader_batch_size,
            rank=args.process_index,
            world_size=args.world_size,
            drop_last=args.dataloader_drop_last,
            start=(self._position.epoch, self._position.seen),
        )
        if not batches.num_left(self._position.epoch):  # the checkpoint is the end of an epoch
            self._position.begin(self._position.epoch + 1)
        loader = TrainLoader(
            data, batch_sampler=batches, persistent_workers=args.dataloader_persistent_workers, **options
        )
        self._loaders.append(loader)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return a loader of evaluation data, whose workers end with the training."""
        self._loaders.append(super().get_eval_dataloader(eval_dataset))
        return self._loaders[-1]

    def _place(self, data: TrainData) -> data_position.DataPosition:
        """Return the DataPosition to start from. Raise ValueError if the checkpoint has other data."""
        args, recorded = self.args, self._resumed.get("data")
        batch = self.loader_batch_size * args.world_size
        description = data_position.described(data, args, batch)
        if recorded and not self._anew:
            description["group"] = recorded["group"]  # sorted as at the start of the run, for any number of ranks
        place = data_position.DataPosition(description, per_step=batch * args.gradient_accumulation_steps)
        if recorded:
            if not self._anew:
                data_position.check(recorded, description)
            place.epoch, place.seen = recorded["epoch"], 0 if self._anew else recorded["seen"]
        elif self._resumed:
            place.from_steps(self._resumed["step"])
        return place

    def _order(self, data: SampleDataset | PackedDataset) -> Callable[[int], Sequence[int]]:
        """Return a function that gives the indices of an epoch in the order of training."""
        place = self._position.description
        if place["order"] == "sequential":
            return lambda epoch: range(len(data))
        if place["group"]:
            sizes = data.lengths if place["order"] == "group_by_length" else data.num_images
            return LengthGroupedSampler(sizes, place["group"], seed=place["seed"]).order
        return lambda epoch: shuffled(len(data), place["seed"] + epoch)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple:
        """Return transformers' values, corrected if the global batch differs from the checkpoint's."""
        values = list(super().set_initial_training_values(args, dataloader))
        before = self._resumed.get("per_step")
        if before not in (None, self._position.per_step) and self._position.size is not None:
            done = self._resumed["step"]
            if args.max_steps <= 0:
                values[-1] = done + self._position.steps_to(args.num_train_epochs)
            else:
                values[0] = self._position.epoch + 1 + math.ceil((args.max_steps - done) / values[1])
        return tuple(values)

    def first_epoch(self, epoch: int) -> int:
        """Return the epoch of the position in the data."""
        return self._position.epoch

    def run_epoch(
        self,
        *,
        epoch: int,
        train_dataloader: DataLoader,
        steps_in_epoch: int,
        num_update_steps_per_epoch: int,
        **kwargs: Any,
    ) -> None:
        """Train the remaining steps of an epoch."""
        if self.state.global_step >= self.state.max_steps:  # the checkpoint is the end of its run
            self.control.should_training_stop = True
            return
        self._position.begin(epoch)
        if self._position.size is None:
            done = self.state.global_step
            steps_in_epoch -= done * self.args.gradient_accumulation_steps
            num_update_steps_per_epoch -= done
        else:
            batches = train_dataloader.batch_sampler
            assert isinstance(batches, RankBatches), "only a stream has none, and its size is None"
            steps_in_epoch = batches.num_left(epoch)
            num_update_steps_per_epoch = math.ceil(steps_in_epoch / self.args.gradient_accumulation_steps)
        super().run_epoch(
            epoch=epoch,
            train_dataloader=train_dataloader,
            steps_in_epoch=steps_in_epoch,
            num_update_steps_per_epoch=num_update_steps_per_epoch,
            **kwargs,
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the metrics of an evaluation; the random state of training does not change."""
        with torch.random.fork_rng(devices=[]):  # so evaluations do not change the training
            return super().evaluate(*args, **kwargs)

    def _reschedule(self, checkpoint: str) -> None:
        """Set the learning rates of the next step from the schedule, whose number of steps may have changed.

        A schedule that depends on the losses is not changed.
        """
        scheduler, before = self.lr_scheduler, read_json_or_none(checkpoint, checkpoints.TRAINER_STATE)
        assert before is not None, "transformers has read it by now"
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            return
        ends = before["max_steps"], self.state.max_steps
        pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        old, rates = scheduler.get_last_lr(), [base * share(scheduler.last_epoch) for base, share in pairs]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], torch.Tensor) else rate
        scheduler._last_lr = rates
        if ends[0] != ends[1] and old != rates and ends[1] > self.state.global_step:
            logger.warning(
                "the %s schedule now has %d steps instead of %d: step %d trains at %.2e, where %.2e would "
                "have been next", self.args.lr_scheduler_type.value, *reversed(ends), self.state.global_step + 1,
                rates[0], old[0],
            )  # fmt: skip

    def _correct_mean(self, logs: dict[str, Any]) -> None:
        """Set the mean loss of a log to that of the steps since the last log line of the checkpoint."""
        since = self._resumed.get("loss", {}).get("since_step", self.first_step)
        if self.state.global_step == self.first_step:
            del logs["train_loss"]
        elif since != self.first_step:
            logs["train_loss"] = self.logged_loss / (self.state.global_step - since)

    # ---- checkpoints and uploads

    def checkpoint_parent(self) -> str | None:
        """Return the staging folder while a checkpoint is written."""
        return self._staging_dir

    def _checkpoint_dir(self) -> Path:
        return Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def write_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Write checkpoint-N under a temporary name, with its manifest, and rename it, so it is always complete.

        If it cannot be written, the run ends and earlier checkpoints stay.
        """
        final, main, everyone = self._checkpoint_dir(), self.args.should_save, self.accelerator.wait_for_everyone
        state, before = self._run_state(), checkpoints.found(self.args.output_dir)
        hint = "Free some space; then the same command with --resume auto resumes" + (
            f" from {before[0]}, which is as it was" if before else ", from the beginning"
        )
        with saving.staged(final.with_name(saving.STAGING), final, owner=main, hint=hint) as staging:
            everyone()  # the folder exists before a rank writes, and is renamed after all have written
            self._staging_dir = str(staging)
            try:
                super().write_checkpoint(model, trial)
            finally:
                self._staging_dir = None
            everyone()
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(final)  # on every rank, since each loads it in the end
            if main:
                folder = staging / final.name
                if not any((folder / name).is_file() for name in final_model.CONFIGS):  # only an engine's weights
                    final_model.write_configs(self.model, self._tokenizer, folder, base=self._base)
                self.state.save_to_json(str(folder / checkpoints.TRAINER_STATE))
                text = json.dumps(state, indent=2) + "\n"
                (folder / checkpoints.RUN_STATE).write_text(text, encoding="utf-8")
                checkpoints.write_manifest(folder)
                saving.put_in_place(folder, final)
        everyone()  # so a rank that ends now does not interrupt another one here
        if self.args.push_to_hub:
            self.push_checkpoint(str(final))
        self._drop_old_checkpoints(final)

    def write_model(self, folder: str, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Write a model folder, or an adapter with base.json, and the arguments of the run."""
        final_model.write_folder(self.model, self._tokenizer, folder, base=self._base, state_dict=state_dict)
        torch.save(self.args, Path(folder, TRAINING_ARGS_NAME))

    def load_weights(self, checkpoint: str, model: nn.Module | None) -> None:
        """Load the weights of a checkpoint. Raise ValueError if it is damaged or does not fit this run."""
        with checkpoints.reading(checkpoint):
            super().load_weights(checkpoint, model)

    def load_optimizer(self, checkpoint: str | None) -> None:
        """Load the optimizer and the schedule of a checkpoint. Raise ValueError if they do not fit this run."""
        asked = settings.of_optimizer(self.optimizer)
        with checkpoints.reading(checkpoint):
            super().load_optimizer(checkpoint)
        if checkpoint is None:
            return
        if "settings" not in self._resumed and not self.is_deepspeed_enabled:  # of an older version or another tool
            settings.check_optimizer(checkpoint, asked, settings.of_optimizer(self.optimizer))
        self._reschedule(checkpoint)

    def load_random_state(self, checkpoint: str | None) -> None:
        """Load the random states of a checkpoint. Raise ValueError if it is damaged."""
        with checkpoints.reading(checkpoint):
            super().load_random_state(checkpoint)

    def _drop_old_checkpoints(self, newest: Path) -> None:
        """Delete the checkpoints beyond --save_total_limit, on one rank."""
        if self.args.should_save and self.args.save_total_limit:
            checkpoints.drop_old_checkpoints(newest, self.args.save_total_limit, best=self.state.best_model_checkpoint)

    def _run_state(self) -> dict[str, Any]:
        """Return the content of run_state.json; every rank must call this."""
        args = self.args
        loss = self.unlogged_loss if args.world_size == 1 else self.accelerator.gather(self.unlogged_loss).mean()
        return {
            "format": 1,
            "step": self.state.global_step,
            "engine": engine_of(self),
            "dtype": str(tuning.compute_dtype(bf16=args.bf16, fp16=args.fp16)).removeprefix("torch."),
            "world_size": args.world_size,
            "per_device_train_batch_size": self.loader_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "per_step": self._position.per_step,
            "data": self._position.record(),
            "loss": {"sum": loss.item(), "since_step": self.last_logged_step},
            "evaluation_due": self._stop.evaluation_due,
            **self._made_with,
        }


class Bookkeeping(TrainerCallback):
    """Callback that counts the position of a ResumableTrainer in its data and restores losses not logged yet."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        trainer, resumed = self._trainer, self._trainer._resumed
        if "loss" in resumed:
            trainer.take_up_losses(resumed["loss"]["sum"], resumed["loss"]["since_step"])
        if resumed.get("evaluation_due") and args.eval_strategy != "no":
            trainer.is_best(trainer.evaluate_now())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        place = self._trainer._position
        place.step()
        state.epoch = state.global_step / state.max_steps if place.epochs is None else place.epochs


def engine_of(trainer: Trainer) -> str:
    """Return in words how a Trainer distributes a model over its ranks."""
    if trainer.is_deepspeed_enabled:
        return f"DeepSpeed ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_fsdp_enabled:
        return f"FSDP {trainer.accelerator.state.fsdp_plugin.fsdp_version}"
    return "DDP" if trainer.args.world_size > 1 else "one process"
