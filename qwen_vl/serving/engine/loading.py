"""A model folder, loaded to chat."""

import os

from qwen_vl.adapters import inference
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer


def load(
    path: str | os.PathLike[str] | ModelFolder,
    *,
    device: str | None = None,
    dtype: LoadedDtype = "auto",
    base: str | None = None,
    trust_base: bool = False,
) -> tuple[QWenLMHeadModel, QWenTokenizer]:
    """Return (model, tokenizer) of a model that can chat; arguments and errors are those of `inference.load`.

    Raise ValueError for a base model, which only continues texts, too.
    """
    model, tokenizer = inference.load(path, device=device, dtype=dtype, base=base, trust_base=trust_base)
    settings = model.generation_config.to_dict()
    if not family.is_chat(settings):
        raise ValueError(
            f"{path}: a base model (chat_format {family.chat_format(settings)!r} in generation_config.json), which "
            "only continues texts; fine-tune it first, or take a chat model such as Qwen/Qwen-VL-Chat"
        )
    return model, tokenizer
