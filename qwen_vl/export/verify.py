"""Whether two models are the same model: their logits on one prompt with a picture."""

from typing import NamedTuple

import torch
from PIL import Image

from qwen_vl.model.chat_qwen import make_context
from qwen_vl.model.image_processing_qwen import pixels

QUESTION = "Picture 1: <img></img>\nWhat is in the picture? 图中有什么？"
# Largest difference that is rounding, as a share of the largest logit. Merging rounds each weight once more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class Difference(NamedTuple):
    """How far two logit tensors are apart, as shares of the largest logit of the first."""

    largest: float
    mean: float

    def __str__(self):
        return f"largest logit difference {self.largest:.2e}, mean {self.mean:.2e} (of the largest logit)"


def picture_prompt(tokenizer, config):
    """Model inputs for a question about a generated picture: input_ids [1, length], pixel_values [1, 3, size, size]."""
    size = config.visual["image_size"]
    ramp = Image.linear_gradient("L").resize((size, size))
    picture = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    return {
        "input_ids": torch.tensor([make_context(tokenizer, QUESTION).ids]),
        "pixel_values": pixels(picture, size)[None],
    }


@torch.no_grad()
def logits(model, inputs):
    """float32 logits [1, length, vocab] of the model in evaluation mode."""
    return model.eval()(**{key: value.to(model.device) for key, value in inputs.items()}).logits.float().cpu()


def compare(first, second):
    """The Difference of two logit tensors."""
    scale = first.abs().max()
    apart = (first - second).abs()
    return Difference((apart.max() / scale).item(), (apart.mean() / scale).item())


def check(difference, dtype, what):
    """None, or a ValueError when the difference is more than rounding in `dtype` explains."""
    if not difference.largest <= TOLERANCE[dtype]:  # also true for NaN
        raise ValueError(f"{what}: {difference}; more than {TOLERANCE[dtype]:g}, which rounding in {dtype} explains")
