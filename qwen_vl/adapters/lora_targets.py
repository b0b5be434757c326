"""Which adapters: targets by name or word, and whether flags, checkpoint and adapter folder fit each other."""

import re
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from qwen_vl.checkpoint import quantization
from qwen_vl.families.v1 import ALL_LINEAR, LORA_WORDS, TOKEN_TABLES

OF_BASE_WEIGHTS = ("pissa", "olora")  # computed from the float weights, which they change
FACTORS = re.compile(r"\.lora_(embedding_)?[AB]\b")  # in the names of A and B; DoRA's magnitudes are no factors
WEIGHTS_FILE = "adapter_model.safetensors"


def target_modules(model, targets):
    """What PEFT's target_modules takes for names and words: the names, or one expression where a word is among them.

    A word stands for every linear of its part in this very model. A name is the end of a module's path.
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


def is_end(name, path):
    """Whether a name is a module's whole path or the end of it that begins after a dot."""
    return path == name or path.endswith(f".{name}")


def check_names(model, targets, modules_to_save):
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


def check_whole(model, modules_to_save, kind):
    """Raise ValueError if a module that is to train whole holds weights that are, or will be, quantised as `kind`.

    model: of `loading.skeleton`, in which weights that bitsandbytes makes smaller while loading are float ones.
    """
    packed = quantization.packed_paths(model, kind)
    whole = [name for name in modules_to_save if any(f".{path}.".find(f".{name}.") >= 0 for path in packed)]
    if whole:
        raise ValueError(f"--modules_to_save {' '.join(whole)}: quantised weights cannot train; train adapters on them")


def lost_names(model, flag, names, kinds):
    """Return a line about the names that end the path of no module of these kinds with weights, in a list."""
    paths = [path for path, module in model.named_modules() if isinstance(module, kinds) and has_weights(module)]
    lost = [name for name in names if not any(is_end(name, path) for path in paths)]
    if not lost:
        return []
    ends = sorted({path.rpartition(".")[2] for path in paths} - {""})
    words = f"; words are {', '.join((*LORA_WORDS, ALL_LINEAR))}" if flag == "--lora_target_modules" else ""
    return [f"{flag} {' '.join(lost)}: matches nothing in the model; modules end in {', '.join(ends)}{words}"]


def has_weights(module):
    """Return whether a module holds parameters, or the buffers that stand for them in a packed layer."""
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def whole_paths(model, names):
    """Return the paths of the modules with one of these names; of a list of modules, those of its members."""
    modules = dict(model.named_modules())
    paths = [path for path in modules if any(is_end(name, path) for name in names)]
    lists = {path: len(modules[path]) for path in paths if isinstance(modules[path], nn.ModuleList)}
    return [member for path in paths for member in ([f"{path}.{i}" for i in range(lists.get(path, 0))] or [path])]


def modules_to_save(model, names):
    """Return what PEFT's modules_to_save takes for names: each as it is, or the whole paths that it stands for.

    PEFT compares the ends of paths as texts, so that `attn` would be `c_attn` as well, and takes no lists of modules.
    """
    paths, found = [path for path, _ in model.named_modules()], []
    for name in names or ():
        meant = whole_paths(model, [name])
        found += [name] if meant == [path for path in paths if path.endswith(name)] else meant
    return found or None


def trained_rows(new_tokens, modules_to_save):
    """{module: ids} of the rows that train for new tokens, for modules that do not train whole anyway."""
    ids = list(new_tokens)
    whole = {name for name, path in TOKEN_TABLES.items() if any(is_end(one, path) for one in modules_to_save)}
    return {name: ids for name in TOKEN_TABLES if ids and name not in whole}


def check_rows(rows, model=None):
    """Raise ValueError where rows of embeddings cannot train: under ZeRO-3, or on a module that has an adapter.

    model: a PeftModel without these rows, or None where the adapter has them already.
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


def check_base(kind, *, lora, use_dora=False, start="default", bias="none", in_parts=False, recast=False):
    """None, or a ValueError with everything that this training cannot do with its base weights.

    kind: how they are quantised, if they are. start: that of --init_lora_weights. in_parts: whether each process holds
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
            f"ZeRO-3 and FSDP divide weights among processes, and quantised layers ({kind}) cannot be divided; use "
            "ZeRO-2 (configs/deepspeed/zero2.json) or neither of them: Int4 weights are small enough for each GPU"
        )
    if kind and recast:
        problems.append(
            f"--fp16_full_eval and --bf16_full_eval cast all weights, and quantised ones ({kind}) would be others "
            "after that; leave them out"
        )
    if kind and not lora:
        problems.append(
            f"full fine-tuning cannot train quantised weights ({kind}); add --q_lora to train adapters on them, "
            "or give the float checkpoint"
        )
    if kind in ("gptq", "int8") and use_dora:
        layer = "a GPTQ layer has not" if kind == "gptq" else "bitsandbytes moves away in an int8 layer"
        problems.append(f"--use_dora reads the base weights, which {layer}; use --use_rslora, or nf4")
    if kind and start in OF_BASE_WEIGHTS:
        problems.append(
            f"--init_lora_weights {start} changes the base weights, which cannot be done to quantised ones "
            f"({kind}); leave it out, or train on the float checkpoint without --q_lora"
        )
    if kind == "gptq" and bias != "none":
        problems.append(f"--lora_bias {bias}: biases of GPTQ layers cannot train; leave it out")
    if problems:
        raise ValueError("\n  ".join(problems))


def starting_point(model):
    """{name: tensor} of adapters that started from the base weights and changed these, as they are now; else {}.

    To be taken before training, for `make_plain`.
    """
    if model.peft_config["default"].init_lora_weights not in OF_BASE_WEIGHTS:
        return {}
    state = get_peft_model_state_dict(model)
    return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items() if FACTORS.search(name)}


def make_plain(folder, start):
    """None; the adapter in a folder becomes one of twice the rank on the unchanged base, without its `start`.

    B A - B' A' is one product of stacked matrices. So no reader has to repeat the start, which not every one can.
    PEFT's own conversion (`path_initial_model_for_weight_conversion`, peft 0.21) gives the same A and B but writes
    nothing else: it loses whole modules, rows of new tokens, DoRA's magnitudes and adapters of embeddings, and fails
    with --lora_bias. It also wants the start on disk, to load it as a second adapter.
    """
    file = Path(folder, WEIGHTS_FILE)
    tensors = load_file(file)
    for name, first in start.items():
        is_b = ".lora_B" in name or ".lora_embedding_B" in name
        stacked = [tensors[name], (-first if is_b else first).to(tensors[name])]
        tensors[name] = torch.cat(stacked, dim=1 if is_b else 0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    config = PeftConfig.from_pretrained(folder)
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # the scaling stays what it was
    config.r, config.init_lora_weights = 2 * config.r, True
    config.save_pretrained(folder)


def check_plain(adapter_dir):
    """None, or a ValueError for an adapter that goes with changed base weights: a checkpoint, not a final folder."""
    start = PeftConfig.from_pretrained(adapter_dir).init_lora_weights
    if start in OF_BASE_WEIGHTS:
        raise ValueError(
            f"{adapter_dir}: a checkpoint of a run with --init_lora_weights {start}, which changed the base; take the "
            "adapter in the output folder of that run, or finish it with --resume_from_checkpoint"
        )


def rehearsed(adapter_dir, model, *, r=None):
    """A model of `loading.skeleton` with adapters as in a folder; ValueError where these do not fit it.

    r: the rank that the caller asked for, if any. Compares names and shapes; no weights are read.
    """
    config = PeftConfig.from_pretrained(adapter_dir)
    if config.peft_type != "LORA":  # before fields that only LoRA has
        raise ValueError(f"{adapter_dir}: an adapter of type {config.peft_type}; only LoRA adapters are continued")
    check_plain(adapter_dir)
    check_rows(config.trainable_token_indices)
    if r is not None and r != config.r:
        raise ValueError(f"{adapter_dir}: an adapter of rank {config.r}, and --lora_r is {r}; leave --lora_r out")
    try:
        with safe_open(Path(adapter_dir, WEIGHTS_FILE), framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{adapter_dir}: has no {WEIGHTS_FILE}; give a complete adapter folder") from error
    except SafetensorError as error:
        raise ValueError(f"{adapter_dir}: {WEIGHTS_FILE} is damaged ({error}); get it again") from error
    config.init_lora_weights, config.inference_mode, config.base_model_name_or_path = True, False, None
    try:
        quantization.quiet_gptqmodel()  # which peft imports for any adapter
        adapted = get_peft_model(model, config)
    except ValueError as error:  # no target is in the model
        raise ValueError(f"{adapter_dir}: does not fit the model: {error}".splitlines()[0]) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    different = sorted(name for name in wanted.keys() | stored.keys() if wanted.get(name) != stored.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{adapter_dir}: does not fit the model in {len(different)} tensors; {name} is "
            f"{stored.get(name, 'absent')} there and {wanted.get(name, 'absent')} in a new adapter of its settings; "
            "give an adapter of this base"
        )
    return adapted
