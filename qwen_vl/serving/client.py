"""A small client: ask a server about images, and draw the boxes of its answer.

`ask` needs nothing but this package. `draw_grounding` also takes the message object of the `openai` client.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_vl.evaluation.openai_protocol import Endpoint, first_choice, image_uri
from qwen_vl.model.box_drawing_qwen import draw_boxes
from qwen_vl.model.image_loading_qwen import read_image

ImageInput = str | os.PathLike[str] | Image.Image  # a path, an http(s) address or data: URI, or a PIL image
ADDRESSES = ("http://", "https://", "data:")


def ask(
    base_url: str,
    model: str,
    text: str,
    images: Sequence[ImageInput] = (),
    *,
    key: str | None = None,
    timeout: float = 300.0,
    **options: Any,
) -> dict[str, Any]:
    """Return the message of a server's answer: "content", and "grounding" if it has boxes.

    base_url: the address of the server, such as http://127.0.0.1:8000/v1. images: local ones are sent with the
    question, http(s) addresses are read by the server. options: further fields, such as `max_tokens=64`.
    Raise ValueError for an address that is none, OSError if the server refuses, cannot be reached, or an image cannot
    be opened.
    """
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image_url(image)}} for image in images]
    content: Any = [*parts, {"type": "text", "text": text}] if parts else text
    body = {"model": model, "messages": [{"role": "user", "content": content}], **options}
    at = Endpoint.at(base_url, key)
    endpoint = Endpoint(at.url, at.key, timeout=timeout, tries=1)
    reply = first_choice(endpoint.post("chat/completions", body), endpoint.url)
    message: dict[str, Any] = reply.get("message") or {}
    return message


def image_url(image: ImageInput) -> str:
    """Return an image as an address for a request: an address as it is, a file or PIL image as a data: URI.

    Raise OSError if a file cannot be opened or is no image.
    """
    if isinstance(image, str) and image.lower().startswith(ADDRESSES):
        return image
    if not isinstance(image, Image.Image):
        return image_uri(Path(image).read_bytes())
    file = io.BytesIO()
    read_image(image).save(file, "PNG")
    return image_uri(file.getvalue())


def draw_grounding(image: ImageInput, message: Any) -> Image.Image:
    """Return a copy of an image with the boxes of an answer and their labels; quadrilaterals as upright boxes.

    image: the one that the boxes belong to, the latest of the conversation; its size may differ from the one that was
    sent. message: a message of `ask`, or of the `openai` client, or its "grounding" alone. A small image is enlarged,
    as in `draw_boxes`. Raise ImageError if the image cannot be opened.
    """
    boxes: list[dict[str, Any]] = []
    label = None
    for found in (grounding_of(message) or {}).get("objects", []):
        numbers = found.get("box_1000") or found["quad_1000"]
        box = (min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))
        is_new = found["label"] is not None and found["label"] != label  # boxes of one phrase share label and color
        boxes.append({"box": box} | ({"ref": found["label"]} if is_new else {}))
        label = found["label"]
    return draw_boxes(read_image(image), boxes)


def grounding_of(message: Any) -> dict[str, Any] | None:
    """Return the grounding of a message, None without boxes. Raise ValueError for anything that is no message."""
    if isinstance(message, Mapping):
        message = dict(message)
        return message if "objects" in message else message.get("grounding")
    extra = getattr(message, "model_extra", message)  # of the openai client, which keeps unknown fields there
    if not isinstance(extra, Mapping | None):
        raise ValueError(f"message is a {type(message).__name__}; pass a message of an answer, or its grounding")
    return (extra or {}).get("grounding")
