"""The values of an evaluation: a record of a benchmark, what the model is asked about it, and what it answered."""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from qwen_vl.model.image_loading_qwen import ImageError, read_image

Style = Literal["raw", "chat"]


@dataclass(frozen=True)
class ImageSource:
    """An image of a record: what it is called, and how its encoded bytes are read. `name` is unique in a benchmark."""

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)

    @classmethod
    def from_file(cls, path: Path) -> "ImageSource":
        """Return the source of an image file."""
        return cls(str(path), path.read_bytes)

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> "ImageSource":
        """Return the source of an image that is encoded (PNG, JPEG, ..) in memory."""
        return cls(name, lambda: content)

    def digest(self) -> str:
        """Return the SHA-256 of the encoded bytes; raise OSError if they cannot be read."""
        return hashlib.sha256(self.read()).hexdigest()

    def open(self) -> Image.Image:
        """Return the RGB image; raise ImageError, which names the image, if it cannot be opened."""
        try:
            content = self.read()
        except OSError as error:
            raise ImageError(f"image {self.name!r}: {error.strerror or error}; restore the file") from error
        try:
            with Image.open(io.BytesIO(content)) as image:
                return read_image(image)
        except UnidentifiedImageError as error:  # its own text has an address in memory
            raise ImageError(f"image {self.name!r}: in no known format of images; get the file again") from error
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"image {self.name!r}: cannot be decoded ({error}); get the file again") from error


@dataclass(frozen=True)
class Record:
    """One question of a benchmark, as its files give it.

    `id` is unique in the benchmark. `answers` are all accepted answers, none in a test split. `fields` has whatever
    the metric, the breakdowns and the submission file need beyond that, under names that the reader documents.
    """

    id: str
    question: str
    images: tuple[ImageSource, ...] = ()
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # texts of the choices, in the order of the letters
    hint: str = ""
    system: str | None = None  # of a conversation: its own system text
    history: tuple[tuple[str, str], ...] = ()  # of a conversation: earlier (question, answer) turns
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        """Return what questions about the same images share, for errors that are clustered by image."""
        return "\n".join(image.name for image in self.images) or self.id


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated: greedily, one beam (EVAL protocol in docs/evaluation.md)."""

    max_new_tokens: int
    min_new_tokens: int = 1
    end: Literal["endoftext", "im_end"] = "endoftext"  # im_end: at <|im_end|> and <|im_start|>, too
    keep_boxes: bool = False  # decode <ref> and <box>, as chat does; else they vanish
    strip: bool = True  # outer white space of the decoded answer


@dataclass(frozen=True)
class Ranking:
    """How an option is chosen: the smallest loss of one space and its letter after the prompt; first one at a tie."""

    num_options: int | None = None  # None: as many as the record has


Parts = tuple[str | ImageSource, ...]  # texts and images in their order


@dataclass(frozen=True)
class Prompt:
    """What the model reads for one record: texts and images in their order, raw or as a chat turn.

    An ImageSource among the parts is an image, and nothing else is: <img> in a text part is what somebody wrote, and
    stays plain text, as control markers such as <|im_end|> do. The ref, box and quad tags of a text are tokens. Two
    texts never follow each other, so words are tokenized across the place where a template was filled.
    """

    parts: Parts
    style: Style = "raw"
    system: str | None = None  # chat only; None: the default system text
    history: tuple[tuple[Parts, str], ...] = ()  # chat only: earlier (question, answer) turns

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Return the images in the order in which the model reads them, those of the history first."""
        turns = [*(asked for asked, _ in self.history), self.parts]
        return tuple(part for turn in turns for part in turn if isinstance(part, ImageSource))

    @property
    def text(self) -> str:
        """Return the parts (without the history) for people and for keys, with <img>NAME</img> for each image."""
        return "".join(part if isinstance(part, str) else f"<img>{part.name}</img>" for part in self.parts)


@dataclass(frozen=True)
class Answer:
    """What a model said to one record, as one line of answers.jsonl.

    A generated answer has `text`, a ranking has `losses` (one per option) and `choice`. `error` tells why there is
    neither: the record counts as unanswered, and the score as incomplete.
    """

    id: str
    key: str  # digest of all that the answer depends on: weights, tokenizer, prompt, image bytes, decoding
    text: str | None = None
    losses: tuple[float, ...] | None = None
    choice: int | None = None
    num_tokens: int = 0  # generated ones, the end token not counted
    finish: Literal["stop", "length", "rank", "error"] = "stop"
    error: str | None = None
