"""Reader of the project's own conversation files, of every kind (docs/data.md): the last answer is the right one.

The records have: id = that of the conversation, or its place in the file (an id that comes again is `7#2`); history =
the earlier turns; question = the last one, with its <img>..</img>; images = those of all questions, in the order of
their tags; system; answers = the last assistant turn, or the conversation's `references`. Fields: metric and category,
where the conversation has them.
"""

import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_vl.data import conversations, image_files
from qwen_vl.evaluation.generation import split
from qwen_vl.evaluation.records import ImageSource, Record
from qwen_vl.model.download_qwen import ImageError, download

from .encoded_images import from_base64
from .problems import Problems

TAG = re.compile("<img>(.*?)</img>", re.DOTALL)
DATA = "data:"


def read(files: Mapping[str, Path]) -> list[Record]:
    """Return the records of the conversation file files["records"], in its order; see the module.

    files["images"], if given, is a folder of relative images, after that of the file. Every local image must exist.
    Raise ValueError with all problems of the file, OSError if it cannot be read.
    """
    path, folder = files["records"], files.get("images")
    found = conversations.read(path, image_folder=None if folder is None else str(folder))
    images = _Images(path, conversations.search_dirs(path, None if folder is None else str(folder)))
    problems, counts, records = Problems(), Counter[str](), []
    for conversation in found:
        name = str(conversation["id"])
        counts[name] += 1
        unique = name if counts[name] == 1 else f"{name}#{counts[name]}"
        try:
            records.append(_record(unique, conversation, images))
        except ValueError as error:
            problems.add(f"{path}: {error}")
    problems.raise_if_any()
    twice = [record_id for record_id, count in Counter(record.id for record in records).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: two records would have the id {twice[0]!r}; give each conversation an id of its own")
    return records


def _record(name: str, conversation: Mapping[str, Any], images: "_Images") -> Record:
    """Return the record of a conversation; raise ValueError, which names it, if it cannot be evaluated."""
    history, question, answer = split(conversation)
    questions = [*(asked for asked, _ in history), question]
    sources = tuple(images.source(name, reference) for text in questions for reference in TAG.findall(text))
    *earlier, last = [TAG.sub(images.short_tag, text) for text in questions]
    fields: dict[str, Any] = {}
    if conversation.get("metric") is not None:
        fields["metric"] = _texts(name, conversation, "metric")[0]
    if conversation.get("category") is not None:
        category = _texts(name, conversation, "category")
        fields["category"] = category[0] if isinstance(conversation["category"], str) else category
    references = conversation.get("references")
    return Record(
        name,
        last,
        sources,
        (answer,) if references is None else tuple(_texts(name, conversation, "references")),
        system=conversation.get("system"),
        history=tuple(zip(earlier, (said or "" for _, said in history), strict=True)),
        fields=fields,
    )


def _texts(name: str, conversation: Mapping[str, Any], key: str) -> Sequence[str]:
    """Return the text or texts of a key as a list; raise ValueError for anything else."""
    value = conversation[key]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}.{key}: {value!r:.60}; use a string or a list of at least one")
    if key == "metric" and not isinstance(value, str):
        raise ValueError(f"{name}.{key}: {value!r:.60}; use a string")
    return texts


class _Images:
    """The images that a conversation file names; equal references are one source."""

    def __init__(self, path: str | os.PathLike, folders: Sequence[str]) -> None:
        self.path, self.folders = path, folders
        self.sources: dict[str, ImageSource] = {}

    def source(self, name: str, reference: str) -> ImageSource:
        """Return the source of a reference; raise ValueError, which names the record, if it cannot be found."""
        if reference not in self.sources:
            self.sources[reference] = self._new(name, reference)
        return self.sources[reference]

    def short_tag(self, tag: re.Match[str]) -> str:
        """Return a tag with the name of its image: an image that stands in the text itself is not repeated there."""
        return f"<img>{self.sources[tag[1]].name}</img>"

    def _new(self, name: str, reference: str) -> ImageSource:
        if reference.startswith(DATA):
            try:
                content = from_base64(reference)
            except ValueError as error:
                raise ValueError(f"{name}: image {reference:.40}..: {error}; encode the image again") from error
            return ImageSource.from_bytes(f"data:{hashlib.sha256(content).hexdigest()[:16]}", content)
        if not image_files.is_local(reference):
            return ImageSource(reference, functools.partial(_download, reference))
        path = image_files.find(reference, self.folders)
        if path is None:
            raise ValueError(f"{name}: image {reference!r}: no such file; correct the path or give the image folder")
        return ImageSource(reference, functools.partial(_content, path))


def _content(reference: str) -> bytes:
    """Return the bytes of a local image; raise OSError if they cannot be had."""
    try:
        return image_files.content(reference)
    except ImageError as error:
        raise OSError(str(error)) from error


def _download(address: str) -> bytes:
    """Return the bytes of an image on the network; raise OSError if they cannot be had."""
    try:
        return download(address)[0]
    except ImageError as error:
        raise OSError(str(error)) from error
