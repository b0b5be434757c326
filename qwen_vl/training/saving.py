"""Trained models and adapters as folders: complete, or not there at all."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError

from qwen_vl.families import v1 as family
from qwen_vl.model.image_processing_qwen import QWenImageProcessor
from qwen_vl.model.processing_qwen import QWenProcessor

from . import adapters, engines, loading, stopping

BASE_FILE = "base.json"  # in an adapter folder: which weights the adapter belongs to
# Weights that an earlier run may have left in an output folder, and that would be loaded in place of the new ones.
WEIGHT_PATTERNS = ("model*.safetensors*", "pytorch_model*", "adapter_model*", "adapter_config.json", BASE_FILE)


def check_writable(output_dir):
    """None, or an OSError when nothing can be written under `output_dir`; nothing is made or changed."""
    wanted = Path(output_dir).absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "may not be written" if existing.is_dir() else "is not a folder"
        raise OSError(f"{output_dir}: {existing} {reason}; give another --output_dir")


@contextmanager
def staged(staging, target, *, owner=True, hint="Free some space or give another folder"):
    """Yields the new, empty folder `staging` to write into; afterwards it is gone, however the block ended.

    Move what is complete to `target` within the block. A failed write, however a library reports it, becomes an
    OSError that names `target` and ends in `hint`. Of several processes one is the owner, which makes and removes the
    folder.
    """
    staging = Path(staging)
    try:
        if owner:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        yield staging
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two: a full disk, as torch and safetensors say
        if stopping.is_lost_connection(error):
            raise
        raise OSError(f"{target}: could not be written ({error}); nothing half-written stays there. {hint}") from error
    finally:
        if owner:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def naming(target):
    """Within this block, a full disk is an OSError that names `target`, where the system's own names nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        raise OSError(f"{target}: could not be written ({error}); free some space or give another folder") from error


def put_in_place(folder, target):
    """Rename a complete, staged folder to `target`; one that is there already goes at the same moment."""
    if target.exists():
        os.replace(target, folder.with_name("replaced"))  # removed with the staging folder
    os.replace(folder, target)


def write_folder(model, tokenizer, folder, *, base=None, **options):
    """Write a model into `folder` with its configs, tokenizer, processor and code, or an adapter with base.json.

    base: {"name", "fingerprint"} of the weights under an adapter. options: those of `save_pretrained`.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, **options)
        (Path(folder) / BASE_FILE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    else:
        family.mark_as_chat(model.generation_config)
        with engines.own_class(model):
            model.save_pretrained(folder, **options)
    QWenProcessor(QWenImageProcessor(family.image_size(model.config)), tokenizer).save_pretrained(folder)


def write_companions(model, tokenizer, folder, *, base=None):
    """Write what stands beside the weights into `folder`, for weights that another writes there in parts."""
    if isinstance(model, PeftModel):
        model.peft_config["default"].save_pretrained(folder)
        (Path(folder) / BASE_FILE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    else:
        family.mark_as_chat(model.generation_config)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    QWenProcessor(QWenImageProcessor(family.image_size(model.config)), tokenizer).save_pretrained(folder)


def drop_old_checkpoints(newest, limit, *, best=None):
    """Delete the oldest folders beside the checkpoint `newest` until `limit` are left; neither it nor `best` goes."""
    newest = Path(newest)
    found = [path for path in newest.parent.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    # By age and not by number: those of an earlier run may have larger numbers.
    removable = sorted(set(found) - {newest, Path(best or newest)}, key=lambda path: path.stat().st_mtime_ns)
    for path in removable[: max(len(found) - limit, 0)]:
        shutil.rmtree(path)


def recorded_base(adapter_dir):
    """{"name", "fingerprint"} of the weights that an adapter was trained on, or None for an adapter made elsewhere.

    Raises FileNotFoundError where there is no adapter.
    """
    if not Path(adapter_dir, "adapter_config.json").is_file():
        hint = "give the --output_dir of a LoRA training"
        unfinished = sorted(Path(adapter_dir).glob("checkpoint-*/adapter_config.json"), key=os.path.getmtime)
        if unfinished:
            hint = f"its run has not finished; the newest adapter is {unfinished[-1].parent}"
        elif Path(adapter_dir, "config.json").is_file():
            hint = "it holds a model, not an adapter; a model is given as --model_name_or_path"
        raise FileNotFoundError(f"{adapter_dir}: no adapter_config.json there; {hint}")
    return loading.read_json(adapter_dir, BASE_FILE)


def load_tokenizer(adapter_dir, base, config=None, cache_dir=None):
    """The tokenizer of an adapter folder, which knows the tokens it was trained with; without one, that of its base."""
    of_adapter = Path(adapter_dir, "qwen.tiktoken").is_file()
    config = config if config is not None else loading.load_config(base, cache_dir)
    return loading.load_tokenizer(adapter_dir if of_adapter else base, config, cache_dir)


def check_base(adapter_dir, name, fingerprint):
    """None, or a ValueError when an adapter was trained on other weights than those of `name`."""
    recorded = recorded_base(adapter_dir)
    if recorded and recorded["fingerprint"] != fingerprint:
        raise ValueError(
            f"{name}: not the weights that {adapter_dir} was trained on (fingerprint {fingerprint[:12]}, "
            f"wanted {recorded['fingerprint'][:12]}); give the base {recorded['name']}"
        )


def save_final(model, tokenizer, output_dir, *, dtype, base=None, weights=None, start=None):
    """Write the trained model in `dtype`, or the adapter as it is, into `output_dir`; other files there stay.

    weights: all of the model's by name, where it holds only a part of each (`engines.whole_weights`).
    start: `adapters.starting_point`, of which the adapter is freed.
    Weights of an earlier run are replaced. Raises OSError when the folder cannot be written.
    """
    output_dir = Path(output_dir)
    if weights is None and not base:
        model = model.to(dtype)
    elif not base:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    with staged(output_dir / ".saving", output_dir) as staging:
        write_folder(model, tokenizer, staging, base=base, state_dict=weights)
        if start:
            adapters.make_plain(staging, start)
        for old in {path for pattern in WEIGHT_PATTERNS for path in output_dir.glob(pattern)}:
            old.unlink()
        for file in staging.iterdir():
            os.replace(file, output_dir / file.name)
