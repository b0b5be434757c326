"""Targets of adapters, by name or word, and checks that flags, checkpoint and adapter folder fit each other."""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy

from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from qwen_vl.checkpoint import quantization
from qwen_vl.families.v1 import ALL_LINEAR, LORA_WORDS, TOKEN_TABLES
from qwen_vl.model import QWenLMHeadModel

from .adapter import OF_BASE_WEIGHTS, Adapter


def target_modules(model: nn.Module, targets: Sequence[str]) -> list[str] | str:
    """Return a value for PEFT's target_modules: the names, or one expression if a word is among them.

    A word stands for every linear of its part in this model. A name is the end of a module's path.
    """
    words = [word for target in targets for word in (LORA_WORDS if target == ALL_LINEAR else [target])]
    words = [word for word in words if word in LORA_WORDS]
    if not words:
        return list(targets)
    paths = [path for path, module in model.named_modules() if isinstance(module, quantization.linear_kinds(model))]
    meant = [path for path in paths if any(re.fullmatch(LORA_WORDS[word], path) for word in words)]
    patterns = {re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(path)) for path in meant}
    names = [target for target in targets if target not in (*LORA_WORDS, ALL_LINEAR)]
    patterns |= {rf"(.*\.)?{re.escape(name)}" for name in names}
    return "|".join(sorted(patterns))


def is_end(name: str, path: str) -> bool:
    """Return whether a name is a module's whole path, or its end after a dot."""
    return path == name or path.endswith(f".{name}")


def check_names(model: nn.Module, targets: Sequence[str], modules_to_save: Sequence[str]) -> None:
    """Raise ValueError naming every target and module that is the end of no path, and modules within one another."""
    kinds = (*quantization.linear_kinds(model), nn.Embedding, nn.Conv2d)
    targets = [target for target in targets if target not in (*LORA_WORDS, ALL_LINEAR)]
    problems = lost_names(model, "--lora_target_modules", targets, kinds)
    problems += lost_names(model, "--modules_to_save", modules_to_save, nn.Module)
    whole = whole_paths(model, modules_to_save)
    inner = [(path, outer) for path in whole for outer in whole if path.startswith(f"{outer}.")]
    problems += [
        f"--modules_to_save: {path} lies in {outer}, which trains whole anyway; leave one of them out"
        for path, outer in inner[:1]
    ]
    if problems:
        raise ValueError("\n  ".join(problems))


def check_whole(model: nn.Module, modules_to_save: Sequence[str], kind: str | None) -> None:
    """Raise ValueError if a module that is to train whole holds weights that are, or will be, quantized as `kind`.

    model: of `loading.skeleton`, in which weights that bitsandbytes quantizes while loading are still float.
    """
    packed = quantization.packed_paths(model, kind)
    whole = [name for name in modules_to_save if any(f".{path}.".find(f".{name}.") >= 0 for path in packed)]
    if whole:
        raise ValueError(f"--modules_to_save {' '.join(whole)}: quantized weights cannot train; train adapters on them")


def lost_names(
    model: nn.Module, flag: str, names: Sequence[str], kinds: type[nn.Module] | tuple[type[nn.Module], ...]
) -> list[str]:
    """Return a list with one error line if a name is the end of no path of these kinds of modules; else []."""
    paths = [path for path, module in model.named_modules() if isinstance(module, kinds) and has_weights(module)]
    lost = [name for name in names if not any(is_end(name, path) for path in paths)]
    if not lost:
        return []
    ends = sorted({path.rpartition(".")[2] for path in paths} - {""})
    words = f"; words are {', '.join((*LORA_WORDS, ALL_LINEAR))}" if flag == "--lora_target_modules" else ""
    return [f"{flag} {' '.join(lost)}: matches nothing in the model; modules end in {', '.join(ends)}{words}"]


def has_weights(module: nn.Module) -> bool:
    """Return whether a module holds parameters, or the buffers that stand for them in a packed layer."""
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def whole_paths(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the paths of the modules with one of these names; of a list of modules, those of its members."""
    modules = dict(model.named_modules())
    paths = [path for path in modules if any(is_end(name, path) for name in names)]
    lists = {path: len(modules[path]) for path in paths if isinstance(modules[path], nn.ModuleList)}
    return [member for path in paths for member in ([f"{path}.{i}" for i in range(lists.get(path, 0))] or [path])]


def modules_to_save(model: nn.Module, names: Sequence[str] | None) -> list[str] | None:
    """Return a value for PEFT's modules_to_save: each name, or the whole paths that it stands for.

    PEFT compares the ends of paths as text, so `attn` would match `c_attn` too, and it takes no lists of modules.
    """
    paths, found = [path for path, _ in model.named_modules()], []
    for name in names or ():
        meant = whole_paths(model, [name])
        found += [name] if meant == [path for path in paths if path.endswith(name)] else meant
    return found or None


def trained_rows(new_tokens: Iterable[int | str], modules_to_save: Sequence[str]) -> dict[str, list[int | str]]:
    """Return {module: ids} of the rows that train for new tokens, without modules that train whole anyway."""
    ids = list(new_tokens)
    whole = {name for name, path in TOKEN_TABLES.items() if any(is_end(one, path) for one in modules_to_save)}
    return {name: ids for name in TOKEN_TABLES if ids and name not in whole}


def check_rows(rows: Mapping[str, Sequence[int | str]] | None, model: PeftModel | None = None) -> None:
    """Raise ValueError if rows of embeddings cannot train: under ZeRO-3, or on a module that has an adapter.

    model: a PeftModel without these rows, or None if the adapter has them already.
    """
    if rows and is_deepspeed_zero3_enabled():
        raise ValueError(
            f"--new_special_tokens trains rows of {' and '.join(TOKEN_TABLES)}, which ZeRO-3 divides among processes; "
            "use ZeRO-2 (configs/deepspeed/zero2.json) or FSDP, or train both whole: "
            f"--modules_to_save {' '.join(TOKEN_TABLES)}"
        )
    layers = {
        name: model.get_base_model().get_submodule(TOKEN_TABLES[name]) for name in rows or () if model is not None
    }
    both = [name for name, layer in layers.items() if isinstance(layer, BaseTunerLayer)]
    if both:
        raise ValueError(
            f"--lora_target_modules {' '.join(both)}: the rows of --new_special_tokens train there, and a module takes "
            "such rows or an adapter, not both; leave it out of the targets, or name it in --modules_to_save as well, "
            "so that it trains whole"
        )


def check_base(
    kind: str | None,
    *,
    lora: bool,
    use_dora: bool = False,
    start: str = "default",
    bias: str = "none",
    in_parts: bool = False,
    recast: bool = False,
) -> None:
    """Raise ValueError if this training is impossible with its base weights; the message has every reason.

    kind: how they are quantized, if they are. start: that of --init_lora_weights. in_parts: whether each process holds
    only a part of them (ZeRO-3, FSDP). recast: whether an evaluation casts them all to another dtype.
    """
    problems = []
    if in_parts and start in OF_BASE_WEIGHTS:
        problems.append(
            f"--init_lora_weights {start} needs the whole weights in every process, which ZeRO-3 and FSDP divide; use "
            "ZeRO-2 (configs/deepspeed/zero2.json) or neither of them"
        )
    if kind and in_parts:
        problems.append(
            f"ZeRO-3 and FSDP divide weights among processes, and quantized layers ({kind}) cannot be divided; use "
            "ZeRO-2 (configs/deepspeed/zero2.json) or neither of them: Int4 weights are small enough for each GPU"
        )
    if kind and recast:
        problems.append(
            f"--fp16_full_eval and --bf16_full_eval cast all weights, and quantized ones ({kind}) would be others "
            "after that; leave them out"
        )
    if kind and not lora:
        problems.append(
            f"full fine-tuning cannot train quantized weights ({kind}); add --q_lora to train adapters on them, "
            "or give the float checkpoint"
        )
    if kind in ("gptq", "int8") and use_dora:
        layer = "a GPTQ layer has not" if kind == "gptq" else "bitsandbytes moves away in an int8 layer"
        problems.append(f"--use_dora reads the base weights, which {layer}; use --use_rslora, or nf4")
    if kind and start in OF_BASE_WEIGHTS:
        problems.append(
            f"--init_lora_weights {start} changes the base weights, which cannot be done to quantized ones "
            f"({kind}); leave it out, or train on the float checkpoint without --q_lora"
        )
    if kind == "gptq" and bias != "none":
        problems.append(f"--lora_bias {bias}: biases of GPTQ layers cannot train; leave it out")
    if problems:
        raise ValueError("\n  ".join(problems))


def rehearsed(adapter: Adapter, model: QWenLMHeadModel, *, r: int | None) -> PeftModel:
    """Return a model of `loading.skeleton` with the adapters of a folder. Raise ValueError if they do not fit it.

    r: the rank that the caller asked for, if any. Names and shapes are compared; no weights are read.
    """
    folder, config = adapter.folder, deepcopy(adapter.config)
    adapter.check_lora("continued")
    check_rows(config.trainable_token_indices)
    if r is not None and r != config.r:
        raise ValueError(f"{folder}: an adapter of rank {config.r}, and --lora_r is {r}; leave --lora_r out")
    stored = adapter.shapes()
    config.init_lora_weights, config.inference_mode, config.base_model_name_or_path = True, False, None
    try:
        quantization.quiet_gptqmodel()  # which peft imports for any adapter
        adapted = get_peft_model(model, config)
    except ValueError as error:  # no target is in the model
        raise ValueError(f"{folder}: does not fit the model: {error}".splitlines()[0]) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    different = sorted(name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{folder}: does not fit the model in {len(different)} tensors; {name} is "
            f"{stored.get(name, 'absent')} there and {wanted.get(name, 'absent')} in a new adapter of its settings; "
            "give an adapter of this base"
        )
    return adapted
