"""Which adapters: targets by name or word, and whether flags, checkpoint and adapter folder fit each other."""

import re
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from . import quantization

WORDS = {  # word for --lora_target_modules: where the linears lie that it means
    "attention": r"transformer\.h\.\d+\.attn\..+",
    "mlp": r"transformer\.h\.\d+\.mlp\..+",
    "resampler": r"transformer\.visual\.attn_pool\..+",
    "vision": r"transformer\.visual\.transformer\..+",
}
ALL_LINEAR = "all-linear"  # all of these words together; lm_head is none of them
OF_BASE_WEIGHTS = ("pissa", "olora")  # computed from the float weights, which they change
FACTORS = re.compile(r"\.lora_(embedding_)?[AB]\b")  # in the names of A and B; DoRA's magnitudes are no factors
WEIGHTS_FILE = "adapter_model.safetensors"


def target_modules(model, targets):
    """What PEFT's target_modules takes for names and words: the names, or one expression where a word is among them.

    A word stands for every linear of its part in this very model. A name is the end of a module's path.
    """
    words = [word for target in targets for word in (WORDS if target == ALL_LINEAR else [target]) if word in WORDS]
    if not words:
        return list(targets)
    paths = [path for path, module in model.named_modules() if isinstance(module, quantization.linear_kinds(model))]
    meant = [path for path in paths if any(re.fullmatch(WORDS[word], path) for word in words)]
    patterns = {re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(path)) for path in meant}
    names = [target for target in targets if target not in (*WORDS, ALL_LINEAR)]
    patterns |= {rf"(.*\.)?{re.escape(name)}" for name in names}
    return "|".join(sorted(patterns))


def check_names(model, targets, modules_to_save):
    """None, or a ValueError with each target and module that is the end of no path in the model."""
    kinds = (*quantization.linear_kinds(model), nn.Embedding, nn.Conv2d)
    targets = [target for target in targets if target not in (*WORDS, ALL_LINEAR)]
    problems = lost_names(model, "--lora_target_modules", targets, kinds)
    problems += lost_names(model, "--modules_to_save", modules_to_save, nn.Module)
    packed = quantization.quantized_linears(model)
    whole = [name for name in modules_to_save if any(f".{path}.".find(f".{name}.") >= 0 for path in packed)]
    if whole:
        problems.append(f"--modules_to_save {' '.join(whole)}: quantised weights cannot train; train adapters on them")
    if problems:
        raise ValueError("\n  ".join(problems))


def lost_names(model, flag, names, kinds):
    """A line about the names that are the end of no path to a module of these kinds, in a list; [] without any."""
    paths = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    lost = [name for name in names if not any(path == name or path.endswith("." + name) for path in paths)]
    if not lost:
        return []
    ends = sorted({path.rpartition(".")[2] for path in paths} - {""})
    words = f"; words are {', '.join((*WORDS, ALL_LINEAR))}" if flag == "--lora_target_modules" else ""
    return [f"{flag} {' '.join(lost)}: matches nothing in the model; modules end in {', '.join(ends)}{words}"]


def trained_rows(new_tokens, modules_to_save):
    """{module: ids} of the rows that train for new tokens, for modules that do not train whole anyway."""
    ids = list(new_tokens)
    return {name: ids for name in ("wte", "lm_head") if ids and name not in modules_to_save}


def check_rows(rows):
    """None, or a ValueError where rows of embeddings would train beside adapters under ZeRO-3, which PEFT cannot."""
    if rows and is_deepspeed_zero3_enabled():
        raise ValueError(
            "--new_special_tokens trains rows of wte and lm_head, which ZeRO-3 divides among processes; use ZeRO-2 "
            "(configs/deepspeed/zero2.json) or FSDP, or train both whole: --modules_to_save wte lm_head"
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
    if kind == "gptq" and use_dora:
        problems.append("--use_dora reads the base weights, which a GPTQ layer has not; use --use_rslora, or nf4")
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
