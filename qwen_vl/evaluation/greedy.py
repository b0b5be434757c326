"""Answers of a live model to many prompts: greedy texts (`greedy_answers`), or the likeliest option (`rank_options`).

Prompts longer than the trained length are answered one by one by the model's own `generate` or `forward`, as the
positions of all their tokens depend on their length.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional as F
from transformers import GenerationConfig

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.chat_qwen import MAX_WINDOW_SIZE
from qwen_vl.model.image_loading_qwen import ImageError
from qwen_vl.model.logits_qwen import NOT_FINITE, LogitsError
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .batches import Job, plan
from .encoding import Encoded, decode, encode, end_ids, option_ids
from .passes import Passes, Prefix, Row, RowCache, open_features
from .records import Decoding, Prompt
from .token_loop import Generated, generate

DIGITS = 5  # of a loss behind the point: hides what is left where a library adds in another order


class Said(NamedTuple):
    """What a model said to one prompt: a text, or the losses of the options and the smallest one's index."""

    text: str | None = None
    losses: tuple[float, ...] | None = None
    choice: int | None = None
    num_tokens: int = 0
    finish: Literal["stop", "length", "rank", "error"] = "stop"
    error: str | None = None


OnBatch = Callable[[list[tuple[int, Said]]], None]  # called with (index of the prompt, what was said) of a batch
Together = Callable[[list[Job], list[Row]], list[Said]]
Alone = Callable[[Job, Encoded], Said]


class Answering(NamedTuple):
    """One run over prompts: the passes of the model, and what it needs to know about the prompts."""

    passes: Passes
    tokenizer: QWenTokenizer
    prompts: Sequence[Prompt]
    on_batch: OnBatch
    window: float

    def each(self, batch_size: int, longest: int, together: Together, alone: Alone) -> None:
        """Answer all prompts: those of at most `longest` tokens by `together`, a batch at a time, others by `alone`."""
        work = plan(self.prompts, self.tokenizer, batch_size=batch_size, longest=longest, window=self.window)
        if work.errors:
            self.on_batch([(index, failed(error)) for index, error in work.errors.items()])
        ahead = self.prepared(work.batches[:1])
        for number in range(self.passes.most(len(work.batches))):
            batch, ahead = ahead, self.prepared(work.batches[number + 1 : number + 2])
            self.batch(batch, together)
        for job in work.alone:
            try:
                with naming([job]):
                    self.on_batch([(job.index, alone(job, self.encoded(job)))])
            except ImageError as error:
                self.on_batch([(job.index, failed(str(error)))])

    def prepared(self, batches: list[list[Job]]) -> dict[Job, Encoded]:
        """Return the encoded prompts of a batch, if there is one, and begin to open its images."""
        encoded = {job: self.encoded(job) for jobs in batches for job in jobs}
        known, opener = self.passes.features, self.passes.opener
        for job, one in encoded.items():
            if job.group not in self.passes.prefixes:
                pairs = zip(job.digests, one.images, strict=True)
                opener.start({digest: image for digest, image in pairs if digest not in known})
        return encoded

    def batch(self, encoded: dict[Job, Encoded], together: Together) -> None:
        """Answer one batch; without jobs, take part in the passes of other processes."""
        wanted = {job.group: (one, list(job.digests)) for job, one in encoded.items() if job.group is not None}
        answers = []
        with naming(list(encoded)):
            errors = self.passes.read_prefixes(wanted)
            readable = [job for job in encoded if job.group not in errors]
            if readable or self.passes.synced:
                rows = [row_of(job, encoded[job].ids) for job in readable]
                answers = together(readable, rows)
        said = [(job.index, one) for job, one in zip(readable, answers, strict=True)]
        said += [(job.index, failed(errors[job.group])) for job in encoded if job.group in errors]
        if said:
            self.on_batch(said)

    def encoded(self, job: Job) -> Encoded:
        """Return the ids of a job's prompt."""
        return encode(self.prompts[job.index], self.tokenizer, max_window_size=self.window)

    def cache(self, jobs: list[Job], more: int, times: int = 1) -> RowCache:
        """Return a cache with the prefixes of jobs, room for the rest and `more` tokens; `times` rows a job."""
        capacity = (jobs[0].shared + jobs[0].room if jobs else 1) + more
        cache = RowCache(max(len(jobs) * times, 1), capacity)
        rows_of: dict[Prefix, list[int]] = {}
        for number, job in enumerate(jobs):
            if job.group is not None:
                prefix = self.passes.prefixes[job.group]
                rows_of.setdefault(prefix, []).extend(range(number * times, (number + 1) * times))
        if rows_of:
            cache.copy_prefixes(rows_of)
        return cache

    def inputs(self, encoded: Encoded) -> dict[str, Any]:
        """Return the model's inputs for one prompt alone; raise ImageError if an image cannot be opened."""
        ids = torch.tensor([encoded.ids], device=self.passes.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if encoded.images:
            inputs["image_features"] = open_features(self.passes, encoded.images)
        return inputs


@torch.no_grad()
def greedy_answers(
    model: QWenLMHeadModel,
    tokenizer: QWenTokenizer,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    batch_size: int,
    on_batch: OnBatch,
    synced: bool = False,
    max_window_size: float = MAX_WINDOW_SIZE,
) -> None:
    """Answer prompts greedily with a model in evaluation mode; call `on_batch` with what was said, batch by batch.

    synced: processes that hold a part of each weight (ZeRO-3, FSDP) all call this, each with its own prompts or none,
    and take the same number of forward passes; a prompt beyond the trained length then gets an error.
    max_window_size: of a chat, as for `make_context`. Nothing that was made in inference mode remains, so training can
    go on. Raise LogitsError, whose `prompts` are the indices of its batch, for logits that are not finite.
    """
    ends = end_ids(tokenizer, decoding)

    def said(generated: Generated) -> Said:
        text = decode(generated.ids, tokenizer, decoding)
        return Said(text, num_tokens=len(generated.ids), finish="stop" if generated.has_ended else "length")

    with ready(model, synced) as passes:
        run = Answering(passes, tokenizer, prompts, on_batch, max_window_size)

        def together(jobs: list[Job], rows: list[Row]) -> list[Said]:
            cache = run.cache(jobs, decoding.max_new_tokens)
            return [said(one) for one in generate(passes, cache, rows, decoding, ends)]

        def alone(job: Job, encoded: Encoded) -> Said:
            if synced:
                return failed(f"{job.length} tokens, more than the {passes.config.seq_length} trained; shorten it")
            config = greedy_config(tokenizer, decoding, ends)
            output = model.generate(**run.inputs(encoded), generation_config=config)[0, len(encoded.ids) :].tolist()
            has_ended = bool(output) and output[-1] in ends
            return said(Generated(output[:-1] if has_ended else output, has_ended))

        run.each(batch_size, passes.config.seq_length, together, alone)


@torch.no_grad()
def rank_options(
    model: QWenLMHeadModel,
    tokenizer: QWenTokenizer,
    prompts: Sequence[Prompt],
    option_counts: Sequence[int],
    *,
    batch_size: int,
    on_batch: OnBatch,
    max_window_size: float = MAX_WINDOW_SIZE,
) -> None:
    """Rank the letters of each prompt's options by their loss behind it; call `on_batch` batch by batch.

    A loss is the mean cross-entropy of one space and the letter. As each of these is one token, one pass over the
    prompt gives all; with a tokenizer of another kind there is a row for each option. Losses are rounded to DIGITS
    digits; the smallest wins, the first at a tie. Errors are those of `greedy_answers`.
    """
    options = option_ids(tokenizer, max(option_counts, default=1))
    for count in option_counts:
        option_ids(tokenizer, count)
    longest = max(map(len, options))

    with ready(model, synced=False) as passes:
        run = Answering(passes, tokenizer, prompts, on_batch, max_window_size)

        def together(jobs: list[Job], rows: list[Row]) -> list[Said]:
            tried = 1 if longest == 1 else len(options)
            rows = [Row([*row.ids, *option[:-1]], row.start) for row in rows for option in options[:tried]]
            logits = passes.read(run.cache(jobs, longest, tried), rows, longest)
            by_job = logits.unflatten(0, (len(jobs), tried))
            return [ranked(one, options[: option_counts[job.index]]) for job, one in zip(jobs, by_job, strict=True)]

        def alone(job: Job, encoded: Encoded) -> Said:
            own, inputs = options[: option_counts[job.index]], run.inputs(encoded)
            rows = []
            for option in own[:1] if longest == 1 else own:
                ids = torch.tensor([[*encoded.ids, *option[:-1]]], device=passes.device)
                inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                rows.append(model(**inputs, use_cache=False, logits_to_keep=longest).logits[0])
            return ranked(torch.stack(rows), own)

        run.each(batch_size, passes.config.seq_length - longest + 1, together, alone)


def ranked(logits: torch.Tensor, options: Sequence[Sequence[int]]) -> Said:
    """Return the ranking of options by logits [1 | options, tokens, vocabulary], whose last row predicts the last id.

    Raise LogitsError if they are not finite.
    """
    losses = []
    for number, option in enumerate(options):
        scores = logits[min(number, len(logits) - 1), -len(option) :].float()
        target = torch.tensor(option, device=scores.device)
        losses.append(F.cross_entropy(scores, target))
    values = [float(loss) for loss in torch.stack(losses).tolist()]
    if not torch.tensor(values).isfinite().all():
        raise LogitsError(NOT_FINITE.format(dtype=logits.dtype))
    rounded = tuple(round(value, DIGITS) for value in values)
    return Said(losses=rounded, choice=rounded.index(min(rounded)), finish="rank")


def row_of(job: Job, ids: list[int]) -> Row:
    """Return what is read behind the prefix; if nothing is there, its last token is read again."""
    start = min(job.shared, job.length - 1)
    return Row(ids[start:], start)


def failed(error: str) -> Said:
    """Return what stands for an answer that there is not."""
    return Said(finish="error", error=error)


def greedy_config(tokenizer: QWenTokenizer, decoding: Decoding, ends: Sequence[int]) -> GenerationConfig:
    """Return the settings with which the model's own `generate` does what `token_loop.generate` does."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=tokenizer.eod_id,
    )


@contextmanager
def naming(jobs: Sequence[Job]) -> Iterator[None]:
    """Give a LogitsError within this block the attribute `prompts`: the indices of these jobs."""
    try:
        yield
    except LogitsError as error:
        error.prompts = [job.index for job in jobs]  # type: ignore[attr-defined]  # for who knows the records' names
        raise


@contextmanager
def ready(model: QWenLMHeadModel, synced: bool) -> Iterator[Passes]:
    """Yield the Passes of a model, in which a kernel that takes no mask is replaced while it answers."""
    inner = family.inner_model(model)
    kernel, always = inner.config._attn_implementation, inner.runs_vision_always
    if kernel not in ("sdpa", "eager"):
        inner.config._attn_implementation = "sdpa"
    inner.runs_vision_always = False  # no pass of any process has images that others have not
    passes = Passes(model, synced=synced)
    try:
        yield passes
    finally:
        passes.opener.close()
        inner.config._attn_implementation, inner.runs_vision_always = kernel, always
