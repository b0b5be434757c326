"""The inspection of one record and of one image, which runs in worker processes."""

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from PIL import Image

from qwen_vl.data import image_files
from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions, Record, fit
from qwen_vl.data.conversations import FOREIGN_KINDS, check_entry, named
from qwen_vl.data.markup import Images, convertible, images_of
from qwen_vl.data.skip_manifests import own_id
from qwen_vl.data.validation import Finding, Problem, is_address
from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_loading_qwen import SCALED
from qwen_vl.model.tokenization_qwen import QWenTokenizer

IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
SMALLEST_SIDE = 10  # pixels; a smaller side looks like a placeholder
LARGEST_RATIO = 10  # of the sides; images are squeezed to a square
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright


class SeenImage(NamedTuple):
    """The findings about an image."""

    size: tuple[int, int] | None  # (width, height), None if it could not be opened
    problems: tuple[Finding, ...]


class Inspected(NamedTuple):
    """The findings about a record."""

    place: str
    id: str | int | None  # its own, None if it has none of a valid type
    problems: list[Problem]
    digest: bytes  # equal if system message and turns are equal; b"" for a record with errors
    length: int | None  # tokens of the whole conversation; None without a tokenizer, and for a record with errors
    num_targets: int | None  # of the part that is kept
    uses: list[tuple[str, str]]  # (field, key) for each image; equal keys are the same image
    opened: dict[str, SeenImage]  # by key: the images that are in the text itself, as data: URIs
    images: Images  # how they are written
    format: str | None  # for `qwen-vl data convert --from`, if the record seems to be of another format


class Inspector:
    """A checker of the records of one file. It can be pickled, so it can be sent to worker processes.

    path, folders: the file, and the folders of its relative images. tokenizer: None to leave out lengths.
    opens: whether images are opened. Otherwise they only have to exist.
    """

    def __init__(
        self,
        path: str,
        folders: list[str],
        encoding: EncodeOptions,
        *,
        tokenizer: QWenTokenizer | None = None,
        opens: bool = True,
    ) -> None:
        self.path, self.folders, self.encoding, self.opens = path, folders, encoding, opens
        self.tokenizer = tokenizer
        self._found: dict[str, str | None] = {}  # reference: its path, or None
        self._opened: dict[str, SeenImage] = {}  # by key

    def records(self, entries: Iterable[tuple[str, Any]]) -> list[Inspected]:
        """Return the Inspected of each (place, record), as `conversations.entries` yields them."""
        return [self._record(place, record) for place, record in entries]

    def images(self, keys: Iterable[str]) -> list[SeenImage]:
        """Open each path or address and return its SeenImage."""
        return [look_at(key) for key in keys]

    def _record(self, place: str, record: Any) -> Inspected:
        problems = check_entry(place, record, self._exists)
        is_good = not any(problem.is_error for problem in problems)
        length, num_targets = None, None
        if is_good and self.tokenizer:
            length, num_targets, found = self._encoded(place, record, self.tokenizer)
            problems += [Problem(place, own_id(record), "conversations", *found)] if found else []
        uses = list(self._uses(record)) if isinstance(record, dict) else []
        opened = {key: self._opened[key] for _, key in uses if key in self._opened}
        digest = _digest(record) if is_good else b""
        form = convertible(record) if any(problem.kind in FOREIGN_KINDS for problem in problems) else None
        seen = (uses, opened, images_of(record), form)
        return Inspected(place, own_id(record), problems, digest, length, num_targets, *seen)

    def _encoded(
        self, place: str, record: Record, tokenizer: QWenTokenizer
    ) -> tuple[int | None, int | None, Finding | None]:
        """Return (tokens, number of kept targets, Finding about the length limit or an encoding error, or None)."""
        conversation = named(self.path, place, record)
        try:
            sample, entry = fit(conversation, tokenizer, self.encoding)
        except ValueError as error:
            return None, None, ("wrong value", str(error))
        num_targets = len(sample.labels) - sample.labels.count(IGNORE_INDEX) if sample else 0
        if entry is None:
            return len(sample.input_ids) if sample else 0, num_targets, None
        kept = (
            f"whole turns at its end are left out, {entry['kept_length']} tokens stay" if sample else "it is left out"
        )
        return entry["length"], num_targets, (
            "over length",
            f"{entry['length']} tokens, the limit is {self.encoding.max_length}: {kept}",
        )  # fmt: skip

    def _find(self, reference: str) -> str | None:
        """Return the path of a local image, or None."""
        if reference not in self._found:
            self._found[reference] = image_files.find(reference, self.folders)
        return self._found[reference]

    def _exists(self, reference: str) -> bool:
        """Return whether a local image exists; one that is opened later only has to be found."""
        return self._find(reference) is not None and (self.opens or image_files.exists(reference, self.folders))

    def _uses(self, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (field, key) of every image that can be opened."""
        turns = record.get("conversations")
        texts = [("system", record.get("system"))]
        for index, turn in enumerate(turns if isinstance(turns, list) else []):
            if isinstance(turn, dict):
                texts.append((f"conversations[{index}].value", turn.get("value")))
        for field, text in texts:
            for reference in IMAGE.findall(text) if isinstance(text, str) else []:
                key = self._key(reference)
                if key:
                    yield field, key

    def _key(self, reference: str) -> str | None:
        """Return the key of an image, the same in all processes: its path, its address, a digest of its data: URI."""
        if image_files.is_local(reference):
            return self._find(reference) if reference.strip() else None
        if not is_address(reference) or reference[:5].lower() != "data:":
            return reference if is_address(reference) else None
        key = "data:" + hashlib.blake2b(reference.encode("utf-8", "replace"), digest_size=16).hexdigest()
        if self.opens and key not in self._opened:
            self._opened[key] = look_at(reference)
        return key


def look_at(reference: str) -> SeenImage:
    """Open a path, an address or a data: URI and return its SeenImage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged metadata
        try:
            image = image_files.read(reference)
        except ImageError as error:
            return SeenImage(None, (("broken image", str(error)),))
        return SeenImage(image.size, tuple(_oddities(image)))


def _oddities(image: Image.Image) -> Iterator[Finding]:
    """Yield a Finding for each property of an image that its owner may not expect."""
    width, height = image.size
    short, long = sorted(image.size)
    if short < SMALLEST_SIDE or long > LARGEST_RATIO * short:
        yield "odd image", f"{width} x {height} pixels; check that it is the right image"
    if SCALED in image.info:
        yield "scaled image", image.info[SCALED]
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata; the model uses only the pixels
        return
    if orientation != 1:
        yield "rotated image", f"EXIF orientation {orientation} is ignored; rotate the pixels themselves"


def _digest(record: dict[str, Any]) -> bytes:
    """Return a digest of the system message and the turns of a record."""
    content = json.dumps([record.get("system"), record["conversations"]], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
