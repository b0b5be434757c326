"""`qwen-vl data preview`: the conversations of a file as training sees them, token by token."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions, Record, encode, fit
from qwen_vl.data.check.check import load_tokenizer
from qwen_vl.data.conversations import read, search_dirs
from qwen_vl.data.validation import DataError
from qwen_vl.model.chat_qwen import SYSTEM
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .overlays import MarkedTurn, draw_on, mark

ENCODING = EncodeOptions()


@dataclass
class Token:
    """One position of a sample, or the positions of a whole image span."""

    text: str
    id: int
    kind: str  # "text", "special" or "image"
    num_positions: int
    num_targets: int
    kept: bool  # False after the place where --max_length cuts


@dataclass
class Preview:
    """One conversation as the page shows it."""

    id: str
    turns: list[MarkedTurn]
    images: list[Image.Image | str]  # images with their boxes, or the text of the error if one cannot be opened
    tokens: list[Token]
    status: str  # "whole", or what --max_length does: "trimmed" or "dropped"
    weight: float  # of its loss

    @property
    def length(self) -> int:
        """Return the number of positions of the whole conversation."""
        return sum(token.num_positions for token in self.tokens)

    @property
    def kept_length(self) -> int:
        """Return the number of positions that are trained on, targets or not."""
        return sum(token.num_positions for token in self.tokens if token.kept)

    @property
    def num_targets(self) -> int:
        """Return the number of positions that the model learns to write."""
        return sum(token.num_targets for token in self.tokens if token.kept)


@dataclass
class Page:
    """Everything on the page: samples, their file and model, and the length limit (or None)."""

    file: str
    model: str
    num_records: int
    max_length: int | None
    samples: list[Preview] = field(default_factory=list)

    def totals(self) -> list[tuple[str, str]]:
        """Return [(what, number as text), ..] over all samples of the page."""
        statuses = Counter(sample.status for sample in self.samples)
        tokens, targets = (sum(getattr(s, name) for s in self.samples) for name in ("kept_length", "num_targets"))
        images = [image for sample in self.samples for image in sample.images]
        failed = sum(isinstance(image, str) for image in images)
        share = f" ({targets / tokens:.0%})" if tokens else ""
        rows = [
            ("samples", f"{len(self.samples)} of {self.num_records}"),
            ("tokens", f"{tokens:,}"),
            ("targets", f"{targets:,}{share}"),
            ("longest", f"{max(sample.length for sample in self.samples):,}"),
            ("images", f"{len(images)}"),
        ]
        if failed:
            rows.append(("not opened", f"{failed}"))
        if self.max_length is not None:
            rows.append(("limit", f"{self.max_length:,} tokens"))
            rows += [(status, f"{statuses[status]}") for status in ("trimmed", "dropped")]
        return rows


# ---- from a conversation to what is shown ---------------------------------------------------------------------------


def look(
    conversation: Record,
    tokenizer: QWenTokenizer,
    encoding: EncodeOptions = ENCODING,
    *,
    search_dirs: Sequence[str] = (),
) -> Preview:
    """Return the Preview of a conversation, with the ids, labels and cut that training has."""
    whole = encode(conversation, tokenizer, control_tokens=encoding.control_tokens, loss_on=encoding.loss_on)
    kept, overlength = fit(conversation, tokenizer, encoding)
    labels, status = kept.labels if kept else [], overlength["action"] if overlength else "whole"
    num_kept = len(labels)
    labels = labels + whole.labels[num_kept:]
    tokens = list(_tokens(whole.input_ids, labels, num_kept, tokenizer))
    turns, shapes = mark(_turns(conversation))
    references = [piece.text for _, pieces in turns for piece in pieces if piece.kind == "img"]
    images = [draw_on(text, shapes[index], search_dirs) for index, text in enumerate(references)]
    return Preview(str(conversation["id"]), turns, images, tokens, status, whole.weight)


def _tokens(ids: Sequence[int], labels: Sequence[int], num_kept: int, tokenizer: QWenTokenizer) -> Iterator[Token]:
    """Yield the Tokens of a sample; an image span is one of them."""
    position, images, span = 0, 0, tokenizer.image_span_tokens + 2
    while position < len(ids):
        index, size = ids[position], 1
        if index == tokenizer.img_start_id and ids[position + span - 1 : position + span] == [tokenizer.img_end_id]:
            images += 1
            text, kind, size = f"Picture {images}", "image", span
        else:
            raw = tokenizer.decoder[index]  # str for a special token, bytes for any other
            text, kind = (raw, "special") if isinstance(raw, str) else (_readable(raw), "text")
        targets = sum(label != IGNORE_INDEX for label in labels[position : position + size])
        yield Token(text, index, kind, size, targets, position < num_kept)
        position += size


def _readable(raw: bytes) -> str:
    """Return the text of a token, or its bytes in hexadecimal if they are only a part of a character."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)


def _turns(conversation: Record) -> list[Mapping[str, Any]]:
    """Return the turns that are encoded, the system message first."""
    turns = conversation["conversations"]
    return [{"from": "system", "value": conversation.get("system", SYSTEM)}, *turns[turns[0]["from"] == "assistant" :]]


# ---- the command ----------------------------------------------------------------------------------------------------


def preview(
    path: str | Path,
    model: str | Path,
    *,
    num: int = 20,
    ids: Sequence[str] | None = None,
    image_folder: str | None = None,
    encoding: EncodeOptions = ENCODING,
) -> Page:
    """Return the Page of the first `num` conversations of a file, or of those with the given ids.

    model: the folder or hub name of the checkpoint whose tokenizer is used. An image that is missing or damaged is
    shown as its error. Raise DataError if the file is broken or an id is unknown.
    """
    records = read(path, image_folder=image_folder, check_images=False)
    chosen = records[:num] if ids is None else _with_ids(path, records, ids)
    tokenizer = load_tokenizer(model)
    page = Page(str(path), str(model), len(records), encoding.max_length)
    folders = search_dirs(path, image_folder)
    for record in chosen:
        page.samples.append(look(record, tokenizer, encoding, search_dirs=folders))
    return page


def _with_ids(path: str | Path, records: Sequence[dict[str, Any]], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records with these ids, in the order of the file."""
    chosen = [record for record in records if str(record["id"]) in ids]
    unknown = set(ids) - {str(record["id"]) for record in chosen}
    if unknown:
        raise DataError(f"{path}: no conversation with id {', '.join(map(repr, sorted(unknown)))}; correct --ids")
    return chosen
