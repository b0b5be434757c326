"""The values of a conversation on its way to the model: messages of text and decoded images."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import squash

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class SentImage:
    """A decoded image of a request. Two are equal if their sizes and pixels are.

    image: RGB, as `read_image` returns it. digest: hex of SHA-256 over the size and the pixels, so it never depends on
    how the file was compressed. size: (width, height) as sent, also of a squashed image.
    """

    image: Image.Image = field(compare=False, repr=False)
    digest: str
    size: tuple[int, int]

    @classmethod
    def of(cls, image: Any) -> "SentImage":
        """Return the SentImage of a PIL image. Raise ImageError if it cannot be converted to RGB."""
        rgb = read_image(image)
        size = f"{rgb.width}x{rgb.height}:".encode()
        return cls(rgb, hashlib.sha256(size + rgb.tobytes()).hexdigest(), rgb.size)

    def squashed(self, side: int) -> "SentImage":
        """Return it as the model sees it, side x side pixels, which `pixels` does not change any more."""
        return replace(self, image=squash(self.image, side))


Part = str | SentImage


@dataclass(frozen=True)
class Message:
    """One message: its role and its parts in order. Only user messages hold images; others raise ValueError."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role != "user" and self.images:
            raise ValueError(f"this {self.role} message holds an image; put it into a user message")

    @property
    def images(self) -> tuple[SentImage, ...]:
        """Return the images of the message, in order."""
        return tuple(part for part in self.parts if isinstance(part, SentImage))
