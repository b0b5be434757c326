"""What a metric returns: figures with their uncertainty, and a score for each record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qwen_vl.evaluation.records import Answer, Record
from qwen_vl.evaluation.statistics import Figure, Unit

__all__ = ["Ask", "Figure", "Messages", "Metric", "Pair", "Result", "SampleScore", "Unit"]

Messages = list[dict[str, str]]  # a conversation of the OpenAI protocol: role and content
Ask = Callable[[Sequence[Messages]], list[str]]  # passes conversations to a judge, and returns its replies


class Pair(NamedTuple):
    """A record and its answer, which has no `error`."""

    record: Record
    answer: Answer


@dataclass(frozen=True)
class SampleScore:
    """The score of one record, 0 to 1 unless the metric says otherwise."""

    id: str
    score: float
    scored: str  # the text that was compared, after all normalization
    unmatched: bool = False  # no option, yes/no or box could be read from the answer
    extra: Mapping[str, Any] = field(default_factory=dict)  # such as iou, variant scores


@dataclass(frozen=True)
class Result:
    """The scores of one benchmark. `figures` keeps its order in reports; names like "accuracy", "type/yes/no"."""

    headline: str  # key of the figure that stands in the table
    figures: dict[str, Figure]
    samples: list[SampleScore]
    notes: tuple[str, ...] = ()  # such as what the idf was taken from


@dataclass(frozen=True)
class Metric:
    """A rule of scoring. `score` gets the answered records in the order of the benchmark, and an Ask if it needs it.

    needs_whole: it also gets all records of the data files, answered or not, and of no subset.
    """

    name: str
    score: Callable[..., Result]
    needs_judge: bool = False
    needs_whole: bool = False
