"""Int4 checkpoints in the layout that AutoGPTQ wrote and that is published, by rounding to the nearest: no GPTQ run.

Of a weight [out, in] the file holds (version 1 of the layout, which has no `format` in its config):

    qweight  int32 [in / 8, out]       8 codes of 4 bits a word, the first input in the lowest bits
    qzeros   int32 [in / group, out/8] likewise along the outputs, each zero point minus one
    scales   fp16  [in / group, out]
    g_idx    int32 [in]                the group of each input

and weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i].
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP_SIZE = 32  # published: 128, which a tiny model has not
CODES_PER_WORD = 8
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
QUANTIZATION_CONFIG = {  # key by key that of the published checkpoint, but for the group size
    "bits": 4,
    "group_size": GROUP_SIZE,
    "damp_percent": 0.01,
    "desc_act": False,
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "model",
    "quant_method": "gptq",
}


def pack(codes, zeros, scales, g_idx):
    """Return {"qweight", "qzeros", "scales", "g_idx"} of int codes [in, out], zeros [groups, out], and the rest."""
    shifts = 4 * torch.arange(CODES_PER_WORD)
    by_word = codes.long().unflatten(0, (-1, CODES_PER_WORD)) << shifts[:, None]  # [in / 8, 8, out]
    zero_words = (zeros.long() - 1).unflatten(1, (-1, CODES_PER_WORD)) << shifts  # [groups, out / 8, 8]
    return {
        "qweight": as_int32(by_word.sum(1)),
        "qzeros": as_int32(zero_words.sum(2)),
        "scales": scales.half(),
        "g_idx": g_idx.int(),
    }


def as_int32(words):
    """Return unsigned 32-bit numbers in int64 as the int32 tensor with the same bits."""
    return torch.where(words >= 2**31, words - 2**32, words).int()


def dequantized(codes, zeros, scales, g_idx):
    """Return the weight [out, in] in float32 that the packed tensors stand for."""
    return (scales.half().float()[g_idx] * (codes - zeros[g_idx]).float()).T


def rounded(weight, group_size=GROUP_SIZE):
    """Return (codes [in, out], zeros and scales [groups, out], g_idx [in]) of a weight [out, in], without GPTQ."""
    grouped = weight.float().T.unflatten(0, (-1, group_size))  # [groups, group, out]
    scales = (grouped.abs().amax(1) / 7).clamp(min=1e-6).half()
    codes = (grouped / scales.float()[:, None]).round().clamp(-8, 7) + 8
    g_idx = torch.arange(weight.shape[1]) // group_size
    return codes.flatten(0, 1).long(), torch.full_like(scales, 8).long(), scales, g_idx


def write_int4_checkpoint(source, target, group_size=GROUP_SIZE):
    """Write the checkpoint `source` to `target`: decoder linears in Int4, zeros for absent biases, the rest in fp16."""
    target = Path(shutil.copytree(source, target, dirs_exist_ok=True))
    tensors = {}
    for name, tensor in load_file(target / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if not (stem.startswith("transformer.h.") and name.endswith(".weight") and stem.endswith(LINEARS)):
            tensors[name] = tensor.half()
            continue
        packed = pack(*rounded(tensor, group_size))
        tensors |= {f"{stem}.{part}": value.contiguous() for part, value in packed.items()}
        tensors.setdefault(f"{stem}.bias", torch.zeros(tensor.shape[0], dtype=torch.float16))
    biases = load_file(Path(source) / "model.safetensors")
    tensors |= {name: biases[name].half() for name in tensors if name in biases and name.endswith(".bias")}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config.pop("dtype", None)
    config |= {"torch_dtype": "float16", "fp16": True, "bf16": False}
    config["quantization_config"] = QUANTIZATION_CONFIG | {"group_size": group_size}
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return target
