"""Preflight: checks before the model is loaded, that a run trains something and resumes with the same data."""

import logging
from copy import copy

from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.training_args import OptimizerNames

from qwen_vl.data.packing import PackedDataset
from qwen_vl.model import QWenTokenizer
from qwen_vl.training.distributed import engines
from qwen_vl.training.flags.arguments import TrainingArguments
from qwen_vl.training.held_out import questions
from qwen_vl.training.param_groups import Row
from qwen_vl.training.resume import data_position
from qwen_vl.training.resume.checkpoints import RunCheckpoint

logger = logging.getLogger(__name__)

OF_VISION = ("vit", "resampler")  # parts in `param_groups.rows` that only images train


def check_steps(max_steps: int) -> None:
    """Raise ValueError if --max_steps allows no step; -1 means that the epochs decide."""
    if max_steps == 0 or max_steps < -1:
        raise ValueError(
            f"--max_steps {max_steps}: nothing would be trained; use a number above 0, or leave it out for "
            "--num_train_epochs"
        )


def check_optimizer(training: TrainingArguments, model: nn.Module) -> None:
    """Raise ImportError if an optimizer's library is not installed, ValueError if it does not read --optim_args.

    model: on the meta device, from `recipe.rehearse`.
    """
    given = [pair for pair in (training.optim_args or "").replace(" ", "").split(",") if pair]
    unread = []
    try:
        _, options = Trainer.get_optimizer_cls_and_kwargs(training, model)
        for pair in given:  # transformers lists nowhere which names an optimizer reads
            others = copy(training)
            others.optim_args = ",".join(other for other in given if other != pair)
            if Trainer.get_optimizer_cls_and_kwargs(others, model)[1] == options:
                unread.append(pair)
    except ImportError:
        raise
    except Exception as error:  # it may need the weights; then the error comes when they are loaded
        logger.debug("--optim %s: %s", training.optim, error)
    if unread:
        name = OptimizerNames(training.optim).value
        raise ValueError(
            f"--optim_args {','.join(unread)}: without effect on --optim {name}, which reads no such name, "
            "or has this value by default; correct the name, or leave it out"
        )


def check(
    data: data_position.TrainData,
    training: TrainingArguments,
    rows: list[Row],
    *,
    checkpoint: RunCheckpoint | None = None,
) -> None:
    """Raise ValueError if nothing would be trained, or if the data differ from those of the checkpoint.

    data: for training. rows: what trains, from `param_groups.rows`.
    """
    batch = training.train_batch_size * training.world_size
    recorded = checkpoint.state.get("data") if checkpoint else None
    if recorded and not training.ignore_data_skip:
        data_position.check(recorded, data_position.described(data, training, batch))
    if not any(row.learning_rate for row in rows):
        logger.warning("every learning rate is 0, so no weight will change")
    warn_of_float32(training)
    if isinstance(data, IterableDataset):
        data.probe()
        return
    if training.dataloader_drop_last and len(data) < batch:
        unit = "packed rows" if isinstance(data, PackedDataset) else "samples"
        raise ValueError(
            f"nothing would be trained: --dataloader_drop_last leaves out batches that are not full, and {len(data)} "
            f"{unit} do not fill one of {training.train_batch_size} x {training.world_size} processes; leave the flag "
            "out, or lower --per_device_train_batch_size"
        )
    parts = {row.part.rpartition(" ")[2] for row in rows if row.trainable}
    if parts <= set(OF_VISION) and not any(data.num_images):
        raise ValueError(
            f"nothing would be trained: only the {' and '.join(sorted(parts))} would, and no sample has an image; "
            "give data with images, or train other parts (--lora_target_modules, --fix_vit)"
        )


def warn_of_float32(training: TrainingArguments) -> None:
    """Warn if a GPU computes in float32, which is what remains without --bf16 and --fp16."""
    if training.device.type == "cuda" and not (training.bf16 or training.fp16):
        logger.warning("training in float32, with twice the memory for frozen weights: --bf16 True changes that")


def check_questions(
    asked: questions.Questions | None, training: TrainingArguments, tokenizer: QWenTokenizer, *, longest: int
) -> None:
    """Raise ValueError if the questions of --eval_generate do not fit the run.

    longest: the trained length of the model in tokens.
    """
    if asked is None:
        return
    questions.check_metric(asked, training.metric_for_best_model)
    if engines.is_sharded(training):
        questions.check_lengths(asked, tokenizer, longest)
