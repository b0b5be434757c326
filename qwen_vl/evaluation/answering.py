"""What answers prompts: a loaded model here, a server in `server.py`; and what both say of themselves."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from qwen_vl.adapters import inference
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.chat_qwen import MAX_WINDOW_SIZE
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .greedy import OnBatch, Said, greedy_answers, rank_options
from .identity import ModelIdentity, identify
from .records import Decoding, Prompt, Ranking

__all__ = ["Answerer", "LocalModel", "ModelIdentity", "OnBatch", "Said", "identify"]


class Answerer(Protocol):
    """Anything that answers prompts."""

    identity: ModelIdentity

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | Ranking,
        *,
        option_counts: Sequence[int] = (),
        batch_size: int,
        on_batch: OnBatch,
    ) -> None:
        """Answer every prompt, and call `on_batch` after each batch.

        option_counts: for a Ranking without a number of its own, the options of each prompt. An image that cannot be
        opened gives a Said with `error` and finish "error"; the others go on.
        """


class LocalModel:
    """A model in this process that answers prompts. In float32 no answer depends on the batch that it was given in."""

    def __init__(self, model: QWenLMHeadModel, tokenizer: QWenTokenizer, identity: ModelIdentity) -> None:
        self.model, self.tokenizer, self.identity = model.eval(), tokenizer, identity

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: LoadedDtype | str = "auto",
        base: str | None = None,
        trust_base: bool = False,
    ) -> "LocalModel":
        """Load a model folder, a hub name or an adapter; arguments and errors are those of `inference.load`."""
        folder = ModelFolder.open(path)
        identity = identify(folder, dtype=dtype, base=base, trust_base=trust_base)
        model, tokenizer = inference.load(folder, device=device, dtype=dtype, base=base, trust_base=trust_base)
        return cls(model, tokenizer, identity)

    def answer(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | Ranking,
        *,
        option_counts: Sequence[int] = (),
        batch_size: int,
        on_batch: OnBatch,
    ) -> None:
        """Answer every prompt as `Answerer.answer` says.

        Raise LogitsError, whose `prompts` are the indices of its batch, for logits that are not finite.
        """
        options: dict[str, Any] = {"batch_size": batch_size, "on_batch": on_batch}
        options["max_window_size"] = window_of(self.model)
        if isinstance(decoding, Decoding):
            greedy_answers(self.model, self.tokenizer, prompts, decoding, **options)
            return
        counts = option_counts if decoding.num_options is None else [decoding.num_options] * len(prompts)
        rank_options(self.model, self.tokenizer, prompts, counts, **options)


def window_of(model: QWenLMHeadModel) -> float:
    """Return how many tokens a chat with a model may have, as its generation config says."""
    return model.generation_config.to_dict().get("max_window_size") or MAX_WINDOW_SIZE
