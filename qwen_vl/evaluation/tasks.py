"""Tasks: a benchmark as one command asks it, with what the user changes, and the subset of its records."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from qwen_vl.evaluation import prompts
from qwen_vl.evaluation.benchmarks.benchmark import Benchmark
from qwen_vl.evaluation.keys import digest, records_digest
from qwen_vl.evaluation.records import Decoding, Prompt, Ranking, Record, Style

GENERATED_LETTER = 10  # new tokens where a benchmark that is ranked by default is answered by generation
KINDS: dict[str, type[Decoding] | type[Ranking]] = {"generate": Decoding, "rank": Ranking}


@dataclass(frozen=True)
class Overrides:
    """What a user changes about benchmarks; None keeps what the benchmark says."""

    style: Style | None = None
    template: str | None = None
    kind: Literal["generate", "rank"] | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    end: Literal["endoftext", "im_end"] | None = None
    shots: int | None = None


@dataclass(frozen=True)
class Subset:
    """Which records are asked: all, or `limit` of a seeded random order, after the first `offset` of that order."""

    limit: int | None = None
    offset: int = 0
    seed: int = 0

    @property
    def is_all(self) -> bool:
        """Return whether no record is left out."""
        return self.limit is None and not self.offset

    def of(self, records: Sequence[Record], group_of: Callable[[Record], str] | None = None) -> list[Record]:
        """Return the records of this subset, in their own order.

        group_of: names the records that are scored together, such as the two questions about an image; a group is
        taken whole, so there may be a few records more than `limit`.
        """
        if self.is_all:
            return list(records)
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault(record.id if group_of is None else group_of(record), []).append(record)
        names = list(groups)
        random.Random(self.seed).shuffle(names)
        chosen: set[str] = set()
        num_passed = num_taken = 0
        for name in names:
            if num_passed < self.offset:
                num_passed += len(groups[name])
            elif self.limit is None or num_taken < self.limit:
                chosen.update(record.id for record in groups[name])
                num_taken += len(groups[name])
        return [record for record in records if record.id in chosen]


@dataclass(frozen=True)
class Task:
    """One run of a benchmark: what is asked and how. `benchmark` has the user's changes in it."""

    benchmark: Benchmark
    run: str  # name of its folder: the benchmark, and what differs from its defaults
    records: Sequence[Record]
    complete_size: int
    subset: Subset = field(default_factory=Subset)
    shots: Sequence[Record] = ()  # the training records that few-shot examples are drawn from
    files: Mapping[str, str] = field(default_factory=dict)  # {role: path} of what the records were read from
    num_frames: int | None = None  # of each clip; None: as many as the benchmark says
    own_data: Mapping[str, str] | None = None  # {role: path} of a conversation file and its image folder
    whole: Sequence[Record] = ()  # all records of the files, of which `records` may be a subset

    @property
    def template(self) -> str:
        """Return the text of the prompt's template."""
        return prompts.check_template(self.benchmark.template)

    def prompts(self) -> list[Prompt]:
        """Return the prompt of each record. Raise ValueError for one that cannot be built."""
        built = []
        for record in self.records:
            num_shots, seed = self.benchmark.num_shots, self.subset.seed
            shots = prompts.draw_shots(self.shots, record.id, num_shots=num_shots, seed=seed) if num_shots else ()
            built.append(prompts.build(record, template=self.template, style=self.benchmark.style, shots=shots))
        return built

    def option_counts(self) -> list[int]:
        """Return how many options each record is ranked over; raise ValueError if one has none."""
        decoding = self.benchmark.decoding
        if not isinstance(decoding, Ranking):
            return []
        counts = [decoding.num_options or len(record.options) for record in self.records]
        if 0 in counts:
            record = self.records[counts.index(0)]
            raise ValueError(f"{self.benchmark.name}: record {record.id} has no options to rank; use --generate")
        return counts

    def settings(self) -> dict[str, Any]:
        """Return what is written into settings.json."""
        benchmark = self.benchmark
        return {
            "benchmark": benchmark.name,
            "title": benchmark.title,
            "template": self.template,
            "style": benchmark.style,
            "decoding": decoding_to_dict(benchmark.decoding),
            "num_shots": benchmark.num_shots,
            "num_frames": self.num_frames,
            "limit": self.subset.limit,
            "offset": self.subset.offset,
            "seed": self.subset.seed,
            "num_records": len(self.records),
            "complete_size": self.complete_size,
            "files": dict(self.files),
            "records_digest": records_digest(self.records),
            "own_data": None if self.own_data is None else dict(self.own_data),
        }


def decoding_to_dict(decoding: Decoding | Ranking) -> dict[str, Any]:
    """Return a decoding as JSON: its kind, "generate" or "rank", and its fields."""
    return {"kind": "generate" if isinstance(decoding, Decoding) else "rank", **asdict(decoding)}


def changed(benchmark: Benchmark, overrides: Overrides) -> Benchmark:
    """Return a benchmark with the user's changes. Raise ValueError for a template or numbers that cannot be used.

    A raw prompt that becomes a chat ends its answer where chats do, unless `end` says something else.
    """
    style = overrides.style or benchmark.style
    decoding = _decoding_in(benchmark, style)
    if overrides.kind is not None and not isinstance(decoding, KINDS[overrides.kind]):
        decoding = Ranking() if overrides.kind == "rank" else _generated(style)
    if isinstance(decoding, Decoding):
        given = {name: getattr(overrides, name) for name in ("max_new_tokens", "min_new_tokens", "end")}
        decoding = replace(decoding, **{name: value for name, value in given.items() if value is not None})
        if decoding.min_new_tokens > decoding.max_new_tokens:
            raise ValueError(
                f"{benchmark.name}: at least {decoding.min_new_tokens} new tokens, but at most "
                f"{decoding.max_new_tokens}; correct --min_new_tokens or --max_new_tokens"
            )
    if overrides.template is not None:
        prompts.check_template(overrides.template)
    return replace(
        benchmark,
        decoding=decoding,
        style=style,
        template=benchmark.template if overrides.template is None else overrides.template,
        num_shots=benchmark.num_shots if overrides.shots is None else overrides.shots,
    )


def run_name(before: Benchmark, after: Benchmark, subset: Subset, num_frames: int | None = None) -> str:
    """Return the folder name of a run: the benchmark's name and each setting that is not its default."""
    parts = [before.name]
    if after.style != before.style:
        parts.append(after.style)
    if prompts.check_template(after.template) != prompts.check_template(before.template):
        parts.append(f"template-{digest(after.template)[:6]}")
    parts += _decoding_parts(_decoding_in(before, after.style), after)
    if after.num_shots != before.num_shots:
        parts.append(f"{after.num_shots}shot")
    if num_frames is not None:
        parts.append(f"{num_frames}frames")
    if subset.limit is not None:
        parts.append(f"limit{subset.limit}")
    if subset.offset:
        parts.append(f"offset{subset.offset}")
    if subset.seed and (not subset.is_all or after.num_shots):
        parts.append(f"seed{subset.seed}")
    return "+".join(parts)


def _decoding_in(benchmark: Benchmark, style: Style) -> Decoding | Ranking:
    """Return the decoding of a benchmark that is asked in a style."""
    decoding = benchmark.decoding
    if isinstance(decoding, Decoding) and style == "chat" != benchmark.style:
        return replace(decoding, end="im_end")
    return decoding


def _generated(style: Style) -> Decoding:
    """Return how an option is written where the benchmark ranks it."""
    return Decoding(max_new_tokens=GENERATED_LETTER, end="im_end" if style == "chat" else "endoftext")


def _decoding_parts(before: Decoding | Ranking, changed: Benchmark) -> list[str]:
    """Return the parts of a run's name that say how its decoding differs."""
    after = changed.decoding
    if isinstance(after, Ranking):
        return [] if isinstance(before, Ranking) else ["rank"]
    parts = [] if isinstance(before, Decoding) else ["generate"]
    usual = before if isinstance(before, Decoding) else _generated(changed.style)
    if after.max_new_tokens != usual.max_new_tokens:
        parts.append(f"max{after.max_new_tokens}")
    if after.min_new_tokens != usual.min_new_tokens:
        parts.append(f"min{after.min_new_tokens}")
    return parts + ([after.end] if after.end != usual.end else [])


def restored(benchmark: Benchmark, settings: Mapping[str, Any]) -> tuple[Benchmark, Subset]:
    """Return a benchmark and the subset as the settings.json of a run have them."""
    fields = dict(settings["decoding"])
    decoding = KINDS[fields.pop("kind")](**fields)
    names = {"style": settings["style"], "template": settings["template"], "num_shots": settings["num_shots"]}
    subset = Subset(settings["limit"], settings["offset"], settings["seed"])
    return replace(benchmark, decoding=decoding, **names), subset
