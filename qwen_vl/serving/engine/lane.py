"""A lane: the requests of one model name, which share forward passes, pages and prefixes."""

import contextlib
import logging
import threading
from collections.abc import Callable

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.requests import GenerationOutput

from . import attention
from .choosing import Chooser, arguments_of
from .values import EngineSettings, Sampling
from .view import ModelView

logger = logging.getLogger(__name__)
OUTPUT_SECONDS = 0.2  # how soon a lane notices that its loop has died


class Lane:
    """A continuous batching manager over a ModelView. Its outputs come from a thread of the lane."""

    def __init__(
        self,
        view: ModelView,
        settings: EngineSettings,
        kv_tokens: int,
        on_output: Callable[[GenerationOutput], None],
        on_death: Callable[[], None],
    ) -> None:
        self.view, self.on_output, self.on_death = view, on_output, on_death
        self.cached: dict[str, int] = {}  # prompt tokens that open requests found in pages
        # Values other than None and 1, or transformers makes no processors that a request could set.
        sampling = GenerationConfig(do_sample=True, temperature=0.5, top_k=50, top_p=0.5, eos_token_id=-1)
        pages = ContinuousBatchingConfig(
            page_size=settings.page_size,
            num_blocks=kv_tokens // settings.page_size,
            max_batch_tokens=settings.max_batch_tokens,
            max_requests_per_batch=min(settings.max_running, settings.max_batch_tokens),
            allow_block_sharing=settings.prefix_sharing,
            auto_switch_to_flash=False,
            per_request_processors=True,
            return_logprobs=True,
            use_cuda_graph=False,  # a graph would replay the same choices
        )
        self.manager = view.init_continuous_batching(generation_config=sampling, continuous_batching_config=pages)
        processors = self.manager.logit_processor.logits_processor
        self.chooser = Chooser(processors, vocab_size=view.config.vocab_size)
        self.thread = threading.Thread(target=self._outputs, name="engine-outputs", daemon=True)

    def start(self) -> None:
        """Start the loop of the engine and the thread of its outputs."""
        with attention.selected(self.view) if self.view.attends_by_request else contextlib.nullcontext():
            self.manager.warmup()  # makes the pages, in which prefixes are counted, and a mask if the attention has one
        self.manager.batch_processor.model_runner._sample = self.chooser
        cache = self.manager.batch_processor.cache
        search = cache.search_prefix_match

        def counted(request_id: str, prompt_ids: list[int]) -> int:
            found = search(request_id, prompt_ids)
            self.cached[request_id] = max(found, self.cached.get(request_id, 0))
            return found

        cache.search_prefix_match = counted
        self.manager.start()
        self.thread.start()

    def add(self, name: str, ids: list[int], sampling: Sampling, max_new_tokens: int, ends: list[int]) -> bool:
        """Add a request, and return whether the loop takes it."""
        taken = self.manager.add_request(
            ids,
            request_id=name,
            max_new_tokens=max_new_tokens,
            streaming=True,
            eos_token_id=ends,
            **arguments_of(sampling, vocab_size=self.view.config.vocab_size),
        )
        return taken is not None

    def drop(self, name: str) -> None:
        """Forget a request that is over, or cancel it."""
        self.cached.pop(name, None)
        self.manager.cancel_request(name)

    def _outputs(self) -> None:
        while True:
            output = self.manager.get_result(timeout=OUTPUT_SECONDS)
            if output is not None:
                self.on_output(output)
            elif not self.manager.is_running():
                break
        self.on_death()

    @property
    def alive(self) -> bool:
        """Return whether the loop runs."""
        return self.manager.is_running() and self.manager.background_thread_status.fatal_error is None

    def pages(self) -> tuple[int, int]:
        """Return the number of pages that requests use, and of all."""
        processor = self.manager.batch_processor
        if processor is None:
            return 0, 0
        cache = processor.cache  # its tables change meanwhile, so they are copied
        used = sum(
            len(table) for allocator in cache.cache_allocators.values() for table in [*allocator.block_table.values()]
        )
        return min(used, cache.num_blocks), cache.num_blocks

    def stop(self) -> None:
        """Stop the loop; requests that are still open get no more tokens."""
        if self.manager.is_running():
            self.manager.stop(block=True, hard_stop=True)
        if self.thread.is_alive():
            self.thread.join()
