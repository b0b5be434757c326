"""The questions that compare two models: built-in ones, or the last questions of a conversation file."""

import io
import os
from collections.abc import Sequence

import torch
from PIL import Image

from qwen_vl.data import conversations, image_files
from qwen_vl.data.chatml import Record
from qwen_vl.files import data_uri
from qwen_vl.model.chat_qwen import make_context
from qwen_vl.model.image_loading_qwen import SearchDirs
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import generation

QUESTIONS = ("What is in the picture? 图中有什么？", "框出图中最亮的地方", "Where is the darkest part?")
SIDE = 64


def gradients(side: int) -> list[Image.Image]:
    """Return the three bands of a generated image, which become brighter downwards, to one side and upwards."""
    ramp = Image.linear_gradient("L").resize((side, side))
    return [ramp, ramp.rotate(90), ramp.rotate(180)]


def built_in() -> list[Record]:
    """Return conversations of one question each about generated images, which the text holds as data URIs."""
    bands = gradients(SIDE)
    records: list[Record] = []
    for number, question in enumerate(QUESTIONS):
        file = io.BytesIO()
        Image.merge("RGB", bands[number:] + bands[:number]).save(file, "PNG")
        uri = data_uri(file.getvalue(), "image/png")
        turns = [{"from": "user", "value": f"Picture 1: <img>{uri}</img>\n{question}"}]
        records.append({"id": f"built-in/{number}", "conversations": [*turns, {"from": "assistant", "value": "-"}]})
    return records


def load(
    path: str | os.PathLike[str] | None = None, *, image_folder: str | None = None, limit: int | None = None
) -> tuple[Sequence[Record], Sequence[str]]:
    """Return (conversations, folders of their images) of a file, or the built-in ones if `path` is None.

    limit: the most conversations to take; they are spread evenly over the file.
    Raise DataError or OSError if the file cannot be read, ValueError for a record that does not end with an answer.
    """
    if path is None:
        return built_in(), ()
    records = conversations.read(path, image_folder=image_folder)
    if not records:
        raise ValueError(f"{path}: no conversation in it")
    if limit and len(records) > limit:
        records = [records[index * len(records) // limit] for index in range(limit)]
    for record in records:
        generation.split(record)
    return records, conversations.search_dirs(path, image_folder)


def inputs_of(
    record: Record, tokenizer: QWenTokenizer, image_size: int, search_dirs: SearchDirs = ()
) -> dict[str, torch.Tensor]:
    """Return input_ids [1, length] and, with images, pixel_values for the last question of a conversation."""
    history, query, _ = generation.split(record)
    prompt = make_context(tokenizer, query, history)
    inputs = {"input_ids": torch.tensor([prompt.ids])}
    if prompt.references:
        opened = [image_files.read(reference, search_dirs) for reference in prompt.references]
        inputs["pixel_values"] = torch.stack([pixels(image, image_size) for image in opened])  # [images, 3, size, size]
    return inputs
