"""Prompts in the order in which they are answered: those about the same images together, similar lengths together."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qwen_vl.model.image_loading_qwen import ImageError
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .encoding import encode
from .passes import STEP, up_to
from .records import Prompt


@dataclass(frozen=True)
class Job:
    """What is known of a prompt before it is answered; its ids are made again then, as many would fill memory."""

    index: int
    length: int  # ids
    shared: int  # ids up to the end of its last image
    digests: tuple[str, ...]  # of its images
    group: bytes | None  # the same for all prompts that begin with the same ids and images; None without images

    @property
    def room(self) -> int:
        """Return the places behind the prefix in a cache: they follow from this prompt alone."""
        return up_to(self.length - self.shared + 1, STEP)


class Plan(NamedTuple):
    """Batches of prompts that are read together, and those that are not."""

    batches: list[list[Job]]  # each of the same prefix length and room
    alone: list[Job]  # longer than the trained length: the positions of all their tokens differ
    errors: dict[int, str]  # index: why its images cannot be read


def plan(prompts: Sequence[Prompt], tokenizer: QWenTokenizer, *, batch_size: int, longest: int, window: float) -> Plan:
    """Return the Plan for prompts, in batches of at most `batch_size`; `longest` is the trained length in tokens."""
    jobs, errors, digest_of = [], {}, {}
    for index, prompt in enumerate(prompts):
        encoded = encode(prompt, tokenizer, max_window_size=window)
        try:
            for image in encoded.images:
                if image not in digest_of:
                    digest_of[image] = image.digest()
        except ImageError as error:
            errors[index] = str(error)
            continue
        except OSError as error:
            errors[index] = f"image {image.name!r}: {error.strerror or error}; restore the file"
            continue
        digests = tuple(digest_of[image] for image in encoded.images)
        group = None
        if digests:
            start = array("q", encoded.ids[: encoded.shared]).tobytes()
            group = hashlib.sha256(start + "".join(digests).encode()).digest()
        jobs.append(Job(index, len(encoded.ids), encoded.shared, digests, group))
    alone = [job for job in jobs if job.length > longest]
    return Plan(_batches([job for job in jobs if job.length <= longest], batch_size), alone, errors)


def _batches(jobs: list[Job], batch_size: int) -> list[list[Job]]:
    """Return batches of jobs of the same prefix length and room; a group is in consecutive batches."""
    longest_of: dict[bytes | None, int] = {}
    for job in jobs:
        if job.group is not None:
            longest_of[job.group] = max(longest_of.get(job.group, 0), job.length)

    def place(job: Job) -> tuple:
        return job.shared, job.room, longest_of.get(job.group, job.length), job.group or b"", job.length, job.index

    batches: list[list[Job]] = []
    for job in sorted(jobs, key=place):
        last = batches[-1] if batches else []
        if last and len(last) < batch_size and (last[0].shared, last[0].room) == (job.shared, job.room):
            last.append(job)
        else:
            batches.append([job])
    return batches
