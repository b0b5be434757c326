"""The worst samples of a run, kept with small images in worst.json when the run is scored.

Scoring has the records, and with them images that are rows of a table; a report has neither.
"""

import base64
import hashlib
import heapq
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_vl.evaluation import results
from qwen_vl.evaluation.records import ImageSource, Record
from qwen_vl.evaluation.safe_text import shortened

WORST = "worst.json"
NUM_WORST = 12
NUM_UNANSWERED = 20  # records without an answer that are named
MAX_IMAGES = 4  # of a sample; those of a few-shot prompt or a long conversation are many
SIDE = 320  # pixels of the longer side of a kept image
QUALITY = 80  # of its JPEG
LONGEST_ERROR = 300  # characters

NEEDED = {"id", "score", "answer", "unmatched", "boxes", "cluster", "extra"}  # keys of a sample that are read

Line = dict[str, Any]  # of samples.jsonl


def keep(folder: Path, records: Sequence[Record], *, has_scores: bool, num_worst: int = NUM_WORST) -> dict[str, Any]:
    """Write worst.json into the folder of a run, from its samples.jsonl; return its content.

    has_scores: False for a test split, of which no sample is worse than another.
    """
    images = {record.id: record.images for record in records}
    unanswered: list[dict[str, str]] = []
    num_without_box = 0

    def answered() -> Iterator[Line]:
        nonlocal num_without_box
        for sample in read_samples(folder):
            num_without_box += is_without_box(sample)
            if sample["score"] is not None:
                yield sample
            elif len(unanswered) < NUM_UNANSWERED:
                error = shortened(str(sample["extra"].get("error") or "not answered yet"), LONGEST_ERROR)
                unanswered.append({"id": sample["id"], "error": error})

    chosen = choose(answered(), num_worst)
    content = {
        "samples": [{**one, **_kept_images(images.get(one["id"], ()))} for one in chosen] if has_scores else [],
        "unanswered": unanswered,
        "without_box": num_without_box,
    }
    results.write_json(folder / WORST, content)
    return content


def read_samples(folder: Path) -> Iterator[Line]:
    """Yield the lines of samples.jsonl of a run; raise ValueError, naming file and line, for one that is broken."""
    path = folder / results.SAMPLES
    if not path.is_file():
        raise ValueError(f"{path}: is missing; run the stage score")
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                sample = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); run the stage score again") from error
            if not isinstance(sample, dict) or not sample.keys() >= NEEDED:
                raise ValueError(f"{path}:{number}: no sample of an evaluation; run the stage score again")
            yield sample


def choose(samples: Iterable[Line], count: int) -> list[Line]:
    """Return the worst answered samples: those with the lowest scores, at the same score first those without a match.

    The rest is a random order that only the ids decide, so that not all are of one image, and two models show the same
    records. A sample with a full score is never among them.
    """
    are_shares = True

    def seen() -> Iterator[Line]:
        nonlocal are_shares
        for sample in samples:
            are_shares = are_shares and 0 <= sample["score"] <= 1
            yield sample

    def rank(sample: Line) -> tuple[float, bool, str]:
        digest = hashlib.sha256(sample["id"].encode("utf-8", "backslashreplace")).hexdigest()
        return sample["score"], not sample["unmatched"], digest

    lowest = heapq.nsmallest(count, seen(), key=rank)
    return [sample for sample in lowest if sample["score"] < 1 or not are_shares]


def boxes_of(sample: Mapping[str, Any]) -> tuple[dict[str, list[list[float]]], bool] | None:
    """Return ({"right": boxes, "predicted": boxes}, whether they are in the grid and not in pixels); None without."""
    if sample["boxes"]:
        return sample["boxes"], False
    in_grid = sample["extra"].get("boxes_in_grid")
    return (in_grid, True) if in_grid else None


def is_without_box(sample: Mapping[str, Any]) -> bool:
    """Return whether an answer has no box where the right one has."""
    found = boxes_of(sample)
    return bool(found and found[0]["right"] and not found[0]["predicted"])


def _kept_images(images: Sequence[ImageSource]) -> dict[str, Any]:
    """Return the last images of a record, which the question is about, and how many come before them."""
    return {"shown": [_kept(image) for image in images[-MAX_IMAGES:]], "not_shown": max(0, len(images) - MAX_IMAGES)}


def _kept(source: ImageSource) -> dict[str, Any]:
    """Return an image as JSON: its size in pixels and a small JPEG of it in base64, or why there is none."""
    try:
        image = source.open()
    except (OSError, ValueError) as error:  # of the second kind are ImageError, and a path with a zero byte
        return {"error": shortened(str(error), LONGEST_ERROR)}
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=QUALITY)
    return {"width": image.width, "height": image.height, "jpeg": base64.b64encode(stream.getvalue()).decode()}
