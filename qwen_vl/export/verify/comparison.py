"""Comparison of two models by their logits: what merging and quantizing check before a folder gets its name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from qwen_vl.adapters import on_disk
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.evaluation import probe_prompts
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.chat_qwen import make_context
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.tokenization_qwen import QWenTokenizer

QUESTION = "Picture 1: <img></img>\nWhat is in the picture? 图中有什么？"
# The largest difference that counts as rounding, as a share of the largest logit. Merging rounds each weight once more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
LAST_POSITIONS = 64  # of a prompt, whose logits are compared; all of them follow its images

ModelInputs = dict[str, torch.Tensor]  # input_ids [1, length] and, with images, pixel_values [images, 3, size, size]


class Difference(NamedTuple):
    """The difference of logits, as shares of the largest of the first, and how often the likeliest token agrees."""

    largest: float
    mean: float
    same: float = 1.0

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.largest:.2e}, mean {self.mean:.2e} (of the largest logit); "
            f"the likeliest token is the same at {self.same:.1%} of positions"
        )


def image_prompt(tokenizer: QWenTokenizer, config: QWenConfig) -> ModelInputs:
    """Return input_ids [1, length] and pixel_values [1, 3, size, size] of a question about a generated image."""
    size = family.image_size(config)
    image = Image.merge("RGB", probe_prompts.gradients(size))
    return {
        "input_ids": torch.tensor([make_context(tokenizer, QUESTION).ids]),
        "pixel_values": pixels(image, size)[None],
    }


@torch.no_grad()
def logits(model: QWenLMHeadModel, inputs: ModelInputs, last: int = 0) -> torch.Tensor:
    """Return float32 logits [1, length, vocab] in evaluation mode, of the `last` positions alone if given."""
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    return model.eval()(**inputs, logits_to_keep=last).logits.float().cpu()


def logits_from_disk(
    path: str | Path | ModelFolder,
    all_inputs: Sequence[ModelInputs],
    *,
    dtype: torch.dtype,
    adapter: Adapter | None = None,
    device: str | torch.device = "cpu",
) -> list[torch.Tensor]:
    """Return the `logits` of a model folder, or of it and an adapter, for each of some inputs, block by block.

    Memory is that of one block. A ModelFolder that is open already is not read again.
    """
    disk = DiskModel(path)
    if adapter:
        on_disk.adapt(disk, adapter, dtype=dtype)
    model = disk.stream(dtype=dtype, device=device)
    return [logits(model, inputs, LAST_POSITIONS) for inputs in all_inputs]


def compare(first: torch.Tensor | list[torch.Tensor], second: torch.Tensor | list[torch.Tensor]) -> Difference:
    """Return the Difference of two logit tensors, or of two lists: the largest of all, the mean of their means."""
    if isinstance(first, list) or isinstance(second, list):
        found = [compare(*pair) for pair in zip(first, second, strict=True)]
        largest = max(found, key=lambda one: one.largest if one.largest == one.largest else float("inf")).largest
        return Difference(largest, mean(one.mean for one in found), mean(one.same for one in found))
    scale = first.abs().max()
    apart = (first - second).abs()
    same = (first.argmax(-1) == second.argmax(-1)).float().mean()
    return Difference((apart.max() / scale).item(), (apart.mean() / scale).item(), same.item())


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean of some numbers."""
    values = list(values)
    return sum(values) / len(values)


def check(difference: Difference, dtype: torch.dtype, what: str) -> None:
    """Raise ValueError if the difference is larger than rounding in `dtype` explains."""
    if not difference.largest <= TOLERANCE[dtype]:  # also true for NaN
        raise ValueError(f"{what}: {difference}; more than {TOLERANCE[dtype]:g}, which rounding in {dtype} explains")
