"""The engine: requests in, events out."""

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch
from transformers.generation.continuous_batching.requests import GenerationOutput

from qwen_vl.adapters.switching import AdapterSwitch
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.image_table import ImageTable

from . import alone
from .encoding import ImageEncoder
from .lane import Lane
from .loading import load
from .open_request import OpenRequest, work_through
from .sizes import kv_tokens
from .values import (
    EngineRequest,
    EngineSettings,
    EngineStats,
    EngineStopped,
    Event,
    ModelEntry,
    PromptTooLong,
    QueueFull,
    UnknownModel,
)
from .view import Turns, view_of

WATCH_SECONDS = 0.1  # how late a request may end after its time limit


class Engine:
    """A model, and adapters on it, that answer many requests at once.

    Each model name has a lane. Forward passes of lanes, the vision tower and requests that run alone take turns.
    A prompt beyond the trained length runs alone, with the positions of `generate`, and so does the part of an answer
    that is beyond it.
    """

    def __init__(
        self,
        model: QWenLMHeadModel,
        tokenizer: QWenTokenizer,
        *,
        entries: list[ModelEntry],
        adapters: AdapterSwitch | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        """Prepare an engine of a loaded model. entries: the base first, then the adapters of `adapters` by name."""
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or EngineSettings()
        self.config, self.generation_config, self.model_names = model.config, model.generation_config, entries
        self.ends = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
        self.adapters, self.turns, self.lock = adapters, Turns(), threading.Lock()
        self.table = ImageTable(
            model.get_input_embeddings(),
            vocab_size=self.config.vocab_size,
            hidden_size=self.config.hidden_size,
            n_queries=self.config.image_span_tokens,
            num_images=self.settings.num_images,
        )
        self.table.salted_id = tokenizer.im_start_id
        model.set_input_embeddings(self.table)
        self.tokens = kv_tokens(model, self.settings, len(entries))
        self.lanes = {entry.id: self._lane(entry) for entry in entries}
        self.open: dict[str, OpenRequest] = {}
        self.counter = itertools.count()
        self.encoder = ImageEncoder(
            self.table, features=self._features, add=self._add, img_start_id=tokenizer.img_start_id
        )
        self.to_run_alone: queue.Queue[OpenRequest | None] = queue.Queue()
        self.started = self.stopping = self.device_failed = False
        self.num_prompt_tokens = self.num_generated_tokens = 0
        self.threads = [
            threading.Thread(target=work_through, args=(self.to_run_alone, self._run_alone), daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | ModelFolder,
        *,
        adapters: Mapping[str, str | Path] | None = None,
        settings: EngineSettings | None = None,
        name: str | None = None,
        device: str | None = None,
        dtype: LoadedDtype = "auto",
        base: str | None = None,
        trust_base: bool = False,
    ) -> "Engine":
        """Return an engine for a model or adapter folder, or hub name, and further adapters by name.

        name: that of the base, by default its folder's. Other arguments and errors are those of `load` and
        `AdapterSwitch`.
        """
        folder = ModelFolder.open(path)
        model, tokenizer = load(folder, device=device, dtype=dtype, base=base, trust_base=trust_base)
        settings = settings or EngineSettings()
        name = name or Path(os.path.abspath(folder.path)).name
        if name in (adapters or {}):
            raise ValueError(f"{name}: the name of the base and of an adapter; give the adapter another name")
        length = settings.max_model_len or model.config.max_position_embeddings
        entries = [ModelEntry(name, str(path), None, length)]
        entries += [ModelEntry(adapter, str(root), name, length) for adapter, root in (adapters or {}).items()]
        if adapters and folder.is_adapter:
            raise ValueError(f"{folder.path}: an adapter; give its base to serve several adapters on it")
        switch = AdapterSwitch(model, folder, adapters, trust_base=trust_base) if adapters else None
        return cls(model, tokenizer, entries=entries, adapters=switch, settings=settings)

    def _lane(self, entry: ModelEntry) -> Lane:
        view = view_of(self.model, self.turns, lambda: self._use(entry.id))
        return Lane(view, self.settings, self.tokens, self._on_output, self._on_death)

    def _use(self, name: str) -> None:
        """Set the adapter of a model name, or none for the base. The caller holds the turn."""
        if self.adapters is not None:
            self.adapters.use(None if name == self.model_names[0].id else name)

    def start(self) -> None:
        """Start the threads of the engine."""
        try:
            for lane in self.lanes.values():
                lane.start()
            self.started = True
            self.encoder.start()
            for thread in self.threads:
                thread.start()
        except BaseException:  # such as too little memory: the process could not end with some threads left
            self.stop()
            raise

    def stop(self, seconds: float = 0.0) -> None:
        """Refuse new requests, wait at most `seconds` for open ones, fail the others, and end all threads."""
        self.stopping = True
        end = time.monotonic() + seconds
        while self.open and time.monotonic() < end and self._lanes_alive():
            time.sleep(WATCH_SECONDS / 2)
        self._fail_all("the server is stopping")
        for lane in self.lanes.values():
            lane.stop()
        self.encoder.stop()
        self.to_run_alone.put(None)
        for thread in self.threads:
            if thread.is_alive():
                thread.join()

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Return whether the engine takes and answers requests."""
        return self.started and not self.stopping and not self.device_failed and self._lanes_alive()

    def _lanes_alive(self) -> bool:
        return all(lane.alive for lane in self.lanes.values())

    def submit(self, request: EngineRequest, on_event: Callable[[Event], None]) -> Callable[[], None]:
        """Begin a request, and return a function that cancels it. Threads of the engine call `on_event`, which is fast.

        Raise UnknownModel, PromptTooLong, QueueFull, EngineStopped, or ValueError for a prompt of another form.
        """
        runs_alone = self._check(request)
        with self.lock:
            if not self.alive:
                raise EngineStopped("the engine is not running")
            if len(self.open) >= self.settings.max_running + self.settings.max_waiting:
                raise QueueFull(f"{len(self.open)} requests are open; try again later")
            name = str(next(self.counter))  # a client's id may come twice
            opened = OpenRequest(name, request, on_event, self._on_close, self.ends, self.settings.request_seconds)
            self.open[name] = opened
            self.num_prompt_tokens += len(request.prompt.ids)
        if runs_alone:
            self.to_run_alone.put(opened)
        elif request.prompt.images:
            self.encoder.put(opened)
        else:
            self._add(opened, request.prompt.ids)
        return lambda: opened.close("cancelled")

    def _check(self, request: EngineRequest) -> bool:
        """Return whether a request has to run alone from the start. Raise an error if it cannot run at all."""
        entry = next((entry for entry in self.model_names if entry.id == request.model), None)
        if entry is None:
            raise UnknownModel(f"{request.model}: no model of this name; there are {', '.join(self.lanes)}")
        ids, images = request.prompt
        if not ids or ids[0] != self.tokenizer.im_start_id or ids.count(self.tokenizer.img_start_id) != len(images):
            raise ValueError("the prompt is none of prompts.encode, which begins with <|im_start|>")
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {request.max_new_tokens}; give at least 1")
        total = len(ids) + request.max_new_tokens
        if total > entry.max_model_len:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens and the answer up to {request.max_new_tokens}; together they may "
                f"have {entry.max_model_len}; shorten the prompt, or ask for a shorter answer"
            )
        if total > self.config.seq_length and request.logprobs:
            raise ValueError(f"logprobs exist up to {self.config.seq_length} tokens; this request may have {total}")
        has_room = len(ids) < self.config.seq_length or total <= self.config.seq_length
        return not has_room or len(set(images)) > self.settings.num_images

    def stream(self, request: EngineRequest) -> Iterator[Event]:
        """Return an iterator over the events of a request; closing it cancels the request. Errors: `submit`."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        cancel = self.submit(request, events.put)

        def iterate() -> Iterator[Event]:
            try:
                while (event := events.get()).finish is None:
                    yield event
                yield event
            finally:
                cancel()

        return iterate()

    @torch.no_grad()
    def _features(self, images: list[SentImage], model: str) -> torch.Tensor:
        """Return the features [images, n_queries, hidden] of images under the adapter of a model name."""
        inputs = self._pixels(images)
        with self.turns:
            self._use(model)
            return self.model.get_image_features(inputs.to(self.model.device)).pooler_output

    def _pixels(self, images: list[SentImage] | tuple[SentImage, ...]) -> torch.Tensor:
        return torch.stack([pixels(image.image, family.image_size(self.config)) for image in images])

    def _add(self, opened: OpenRequest, ids: list[int]) -> None:
        """Hand a request to its lane, its first id replaced by the salt of its sharing key."""
        salted = [self.table.ranges.salt_of(opened.request.sharing_key), *ids[1:]]
        lane, request = self.lanes[opened.request.model], opened.request
        num_new = min(request.max_new_tokens, self.config.seq_length - len(ids))
        if not lane.add(opened.name, salted, request.sampling, num_new, self.ends):
            opened.close("error", "the engine has stopped")
        elif opened.closed.is_set():  # cancelled meanwhile, before its lane knew it
            lane.drop(opened.name)

    def _run_alone(self, opened: OpenRequest) -> None:
        """Run a request by `generate`, from its start or from where its lane has left it.

        The two agree: `generate` scales positions by the length of the prompt, and not at all up to the trained length.
        """
        request, ids = opened.request, [*opened.request.prompt.ids, *opened.ids]

        def on_token(token: int | None) -> None:
            if token is None:  # the end; the last token has said so
                return
            with self.lock:
                self.num_generated_tokens += 1
            opened.push([token])

        images = self._pixels(request.prompt.images) if request.prompt.images else None
        alone.answer(
            self.lanes[request.model].view,
            ids,
            len(request.prompt.ids),
            images,
            request.sampling,
            max_new_tokens=request.max_new_tokens - opened.num_tokens,
            ends=self.ends,
            on_token=on_token,
            closed=opened.closed,
        )
        opened.close("error", "the answer ended early")

    def _on_output(self, output: GenerationOutput) -> None:
        """Pass on the tokens of a lane that are new."""
        with self.lock:
            opened = self.open.get(output.request_id)
        if opened is None:
            return
        if output.error is not None:
            opened.close("error", output.error)
            return
        known, lane = opened.num_tokens, self.lanes[opened.request.model]
        opened.num_cached = opened.num_cached or lane.cached.get(opened.name, 0)
        new = output.generated_tokens[known:]
        with self.lock:
            self.num_generated_tokens += len(new)
        opened.push(new, output.logprobs[known:])
        if output.is_finished() and not opened.closed.is_set():  # at the trained length
            lane.drop(opened.name)
            self.to_run_alone.put(opened)

    def _on_close(self, opened: OpenRequest) -> None:
        """Forget a request. Its rows are free again: pages of a cancelled one are known by ids that never come back."""
        with self.lock:
            self.open.pop(opened.name, None)
            self.device_failed = self.device_failed or opened.device_failed
        self.lanes[opened.request.model].drop(opened.name)
        with opened.lock:
            ranges, opened.ranges = opened.ranges, []
        self.table.ranges.release(ranges)

    def _on_death(self) -> None:
        """End all requests after the loop of a lane has ended."""
        if not self.stopping:
            self._fail_all("the engine has died; see the log of the server")

    def _fail_all(self, reason: str) -> None:
        with self.lock:
            opened = list(self.open.values())
        for one in opened:
            one.close("error", reason)

    def _watch(self) -> None:
        """End requests that are past their time limit, until the engine has stopped."""
        while not self.stopping:
            now = time.monotonic()
            with self.lock:
                late = [one for one in self.open.values() if one.deadline is not None and one.deadline < now]
            for one in late:
                one.close("error", f"not done within {self.settings.request_seconds:g} seconds")
            time.sleep(WATCH_SECONDS)

    def stats(self) -> EngineStats:
        """Return counts of this moment."""
        with self.lock:
            opened = list(self.open.values())
        running = sum(one.num_tokens > 0 for one in opened)
        pages = [lane.pages() for lane in self.lanes.values()]
        return EngineStats(
            running=running,
            waiting=len(opened) - running,
            prompt_tokens=self.num_prompt_tokens,
            generated_tokens=self.num_generated_tokens,
            images_used=self.table.ranges.num_used,
            images=self.settings.num_images,
            pages_used=sum(used for used, _ in pages),
            pages=sum(number for _, number in pages),
        )
