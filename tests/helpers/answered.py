"""Answered records for tests of metrics."""

from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.evaluation.records import Answer, ImageSource, Record


def pair(prediction, answers, *, id="0", image=None, **fields):
    """Return a record with its accepted answers and fields, and what a model answered."""
    images = (ImageSource.from_bytes(image, b""),) if image else ()
    record = Record(id, "what?", images, tuple(answers), fields=fields)
    return Pair(record, Answer(id, "key", prediction))
