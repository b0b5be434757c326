"""Chat with a model: prompts in ChatML, answers, stop words, streaming.

Source: docs/checkpoint_format.md section 6.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizer, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .configuration_qwen import QWenConfig
from .generation_qwen import check_stop_words
from .image_loading_qwen import OpenImage, image_opener
from .image_processing_qwen import open_pixels
from .memory_qwen import ChatMemory, Recall

Mixin: Any = object  # for mypy: the model that a class is mixed into has more members
History = list[tuple[str, str | None]]  # (question, answer) pairs

SYSTEM = "You are a helpful assistant."
MAX_WINDOW_SIZE = 6144
IMAGE_MARKS = ("<img>", "</img>", "<imgpad>")
ONE_ROW = ("greedy_search", "sample")  # generation modes that fill one row of a cache, in order
MADE_BY_CHAT = (  # inputs that chat makes itself if it has a memory
    *("past_key_values", "input_ids", "inputs", "inputs_embeds", "position_ids"),
    *("pixel_values", "image_features", "vit_features"),
)


class Prompt(NamedTuple):
    """A prompt: its text for people, its ids for the model, and the references of its images."""

    text: str
    ids: list[int]
    references: list[str]


def check_conversation(tokenizer: Any, query: Any, history: Any, system: Any) -> None:
    """Raise ValueError if an argument has another type than `make_context` reads; the message says what to pass."""
    if not callable(getattr(tokenizer, "encode_message", None)):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}, which writes no prompts of Qwen-VL; pass the QWenTokenizer of "
            "the checkpoint"
        )
    if isinstance(query, list | tuple | dict):
        raise ValueError(
            f"query is a {type(query).__name__}; pass a string, which tokenizer.from_list_format(..) makes of "
            "[{'image': path}, {'text': question}]"
        )
    if not isinstance(query, str):
        raise ValueError(
            f"query is {query!r:.80}; pass a string, in which <img>path</img> names an image "
            "(tokenizer.from_list_format writes it)"
        )
    if not isinstance(system, str):
        raise ValueError(f"system is {system!r:.80}; pass a string, '' for an empty system message")
    if not isinstance(history, list | tuple | None):
        raise ValueError(f"history is a {type(history).__name__}; pass (question, answer) pairs in a list, or None")
    for number, pair in enumerate(history or []):
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)
        if not is_pair or not isinstance(pair[1], str | None):
            raise ValueError(
                f"history[{number}] is {pair!r:.80}; pass (question, answer) pairs of strings, as chat returns them: "
                "[('My name is Ann.', 'Hello Ann.')]"
            )


def check_window(max_window_size: Any) -> None:
    """Raise ValueError unless `max_window_size` is a positive number."""
    is_number = isinstance(max_window_size, int | float) and not isinstance(max_window_size, bool)
    if not is_number or not max_window_size >= 1:
        raise ValueError(f"max_window_size is {max_window_size!r:.80}; pass a positive number of tokens")


class ChatML:
    """The turns of a prompt in ChatML, as a tokenizer encodes them."""

    def __init__(self, tokenizer: PreTrainedTokenizer) -> None:
        self.tokenizer, self.newline = tokenizer, tokenizer.encode("\n")

    def start(self, role: str) -> list[int]:
        """Return the ids that begin a turn: start marker, role, newline."""
        return [self.tokenizer.im_start_id, *self.tokenizer.encode(role), *self.newline]

    def turn(self, role: str, content: str, *, names_images: bool = True) -> Prompt:
        """Return one turn. Unless `names_images`, every image tag in it is text, complete or not."""
        tokenizer = self.tokenizer
        if names_images or not any(mark in content for mark in IMAGE_MARKS):
            ids, references = tokenizer.encode_message(content)
        else:
            tags = tokenizer.text_tags - {*IMAGE_MARKS}
            ids, references = tokenizer.encode(content, allowed_special=tags, disallowed_special=()), []
        text = f"<|im_start|>{role}\n{content}<|im_end|>"
        return Prompt(text, [*self.start(role), *ids, tokenizer.im_end_id], references)

    def joined(self, turns: list[Prompt]) -> Prompt:
        """Return turns as one Prompt, separated by newlines."""
        return Prompt(
            "\n".join(turn.text for turn in turns),
            [i for n, turn in enumerate(turns) for i in (self.newline if n else []) + turn.ids],
            [reference for turn in turns for reference in turn.references],
        )


def make_context(
    tokenizer: PreTrainedTokenizer,
    query: str,
    history: History | None = None,
    system: str = SYSTEM,
    max_window_size: float = MAX_WINDOW_SIZE,
    chat_format: str = "chatml",
) -> Prompt:
    """Return the Prompt for `query` after `history`, a list of (question, answer) pairs.

    Control markers in any message are plain text. The oldest turns are dropped until the prompt has fewer than
    `max_window_size` ids; the system message and the query always stay. An answer of None becomes an empty line. Only
    questions name images: an image tag in an answer or in the system message is text, and no image is opened for it.
    Raise ValueError for arguments of other types, for another chat format and for unclosed image tags.
    """
    check_conversation(tokenizer, query, history, system)
    check_window(max_window_size)
    if chat_format == "raw":
        ids, references = tokenizer.encode_message(query, control_tokens=True)
        return Prompt(query, ids, references)
    if chat_format != "chatml":
        raise ValueError(f"chat_format is {chat_format!r}; use 'chatml' or 'raw'")
    chatml = ChatML(tokenizer)
    opening = chatml.turn("system", system, names_images=False)
    question = chatml.turn("user", query)
    answer_start = Prompt("<|im_start|>assistant\n", chatml.start("assistant"), [])
    used = len(opening.ids) + len(question.ids) + len(answer_start.ids) + 2 * len(chatml.newline)
    kept: list[Prompt] = []
    for asked, answered in reversed(history or []):
        reply = Prompt("", [], [])
        if answered is not None:
            reply = chatml.turn("assistant", answered, names_images=False)
        pair = [chatml.turn("user", asked), reply]
        used += sum(len(message.ids) + len(chatml.newline) for message in pair)
        if used >= max_window_size:
            break
        kept = pair + kept
    return chatml.joined([opening, *kept, question, answer_start])


def decode_answer(ids: Iterable[int], tokenizer: PreTrainedTokenizer, chat_format: str = "chatml") -> str:
    """Return the text of generated `ids` (without the prompt) up to the first stop token, without outer white space.

    ChatML ends at <|im_end|> or <|im_start|>. In a raw answer every <|endoftext|> is dropped.
    """
    ids = [int(i) for i in ids]
    if chat_format == "raw":
        ids = [i for i in ids if i != tokenizer.eod_id]
        return tokenizer.decode(ids, errors="replace").strip()
    stops = {tokenizer.im_start_id, tokenizer.im_end_id}
    end = next((n for n, i in enumerate(ids) if i in stops), len(ids))
    ids = ids[:end]
    while ids and ids[-1] == tokenizer.eod_id:
        ids.pop()
    return tokenizer.decode(ids, errors="replace").strip()


def first_row(output: Any) -> list[int]:
    """Return the ids of the first row in what `generate` returned: a tensor, or an output with `sequences`."""
    return (output if isinstance(output, torch.Tensor) else output.sequences)[0].tolist()


class TokenStreamer(BaseStreamer):
    """A streamer that passes each generated id to a function, then None. It skips the prompt, which comes first."""

    def __init__(self, receive: Callable[[int | None], None]) -> None:
        self.receive, self.prompt_seen = receive, False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:  # [rows], or [1, tokens] of an assisted generation
            for token in (value[:1] if value.dim() == 1 else value[0]).tolist():
                self.receive(token)
        self.prompt_seen = True

    def end(self) -> None:
        self.receive(None)


class Cancelled(StoppingCriteria):
    """A stopping criterion that ends generation once an event is set, as when the caller has closed the stream."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class ChatCall(NamedTuple):
    """The arguments of one call of `chat` or `chat_stream`."""

    tokenizer: PreTrainedTokenizer
    query: str
    history: History | None
    system: str
    stop_words_ids: list[list[int]] | None
    generation_config: GenerationConfig | None
    memory: ChatMemory | None
    open_image: OpenImage | None
    options: dict[str, Any]  # for `generate`, and `max_window_size`

    def check(self, config: QWenConfig) -> None:
        """Raise ValueError if a model with this config cannot answer the call; the message says what to pass."""
        check_conversation(self.tokenizer, self.query, self.history, self.system)
        words = self.stop_words_ids
        if words is not None and not (isinstance(words, list | tuple) and len(words) == 0):
            check_stop_words(words)
        if not isinstance(self.generation_config, GenerationConfig | None):
            raise ValueError(
                f"generation_config is a {type(self.generation_config).__name__}; pass a "
                "transformers.GenerationConfig, or each setting as a keyword argument"
            )
        if self.memory is not None and not callable(getattr(self.memory, "recall", None)):
            raise ValueError(f"memory is a {type(self.memory).__name__}; pass model.new_memory()")
        image_opener(self.opener)
        if self.options.get("max_window_size") is not None:
            check_window(self.options["max_window_size"])
        twice = [name for name in MADE_BY_CHAT if self.memory is not None and self.options.get(name) is not None]
        if twice:
            raise ValueError(f"{', '.join(twice)}: chat makes this itself from query, history and memory; leave it out")
        if self.tokenizer.image_span_tokens != config.image_span_tokens:
            raise ValueError(
                f"the tokenizer writes {self.tokenizer.image_span_tokens} ids an image, the model has "
                f"{config.image_span_tokens} queries; load both from the same folder"
            )

    @property
    def opener(self) -> OpenImage | None:
        """Return the function that opens images: the call's own or that of its memory; None opens any path."""
        if self.open_image is None and self.memory is not None:
            return self.memory.open_image
        return self.open_image


class ChatMixin(Mixin):
    """`chat`, `chat_stream` and their memory for the complete model."""

    def _chat_inputs(self, call: ChatCall) -> tuple[dict[str, Any], Recall | None]:
        """Return the keyword arguments of a call for `generate`, and the Recall of its memory, None without one."""
        call.check(self.config)
        options = dict(call.options)
        given = self.generation_config if call.generation_config is None else call.generation_config
        config = copy.deepcopy(given)
        chat_format = config.to_dict().get("chat_format", "chatml")
        if chat_format != "chatml":
            raise ValueError(
                f"generation_config.chat_format is {chat_format!r}: this is a base model, not a chat model; use "
                "`generate`, or fine-tune it; if these weights were trained in ChatML, set "
                "model.generation_config.chat_format = 'chatml'"
            )
        windows = (options.pop("max_window_size", None), config.to_dict().get("max_window_size"), MAX_WINDOW_SIZE)
        window = next(window for window in windows if window is not None)
        prompt = make_context(call.tokenizer, call.query, call.history, call.system, window, chat_format)
        config.eos_token_id = [call.tokenizer.eod_id, call.tokenizer.im_end_id, call.tokenizer.im_start_id]
        config.pad_token_id = call.tokenizer.eod_id if config.pad_token_id is None else config.pad_token_id
        others = config.update(**options)  # other arguments go to `generate` unchanged
        inputs = {"input_ids": torch.tensor([prompt.ids], device=self.device), "generation_config": config, **others}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if call.stop_words_ids is not None and len(call.stop_words_ids):
            inputs["stop_words_ids"] = call.stop_words_ids
        if call.opener is not None:  # also for an image span that the model itself generates
            inputs["open_image"] = call.opener
        recalled = None
        if call.memory is not None:
            turns = self._fills_one_row(config, others)
            recalled = call.memory.recall(self, prompt.ids, prompt.references, turns=turns, open_image=call.opener)
        if recalled is not None:
            inputs |= recalled.inputs
        elif prompt.references:
            opened = open_pixels(prompt.references, self.config.visual["image_size"], call.opener)
            inputs["pixel_values"] = torch.stack([opened[name] for name in prompt.references]).to(self.device)
        return inputs, recalled

    def _fills_one_row(self, config: GenerationConfig, others: dict[str, Any]) -> bool:
        """Return whether `generate` fills one row of a plain cache with prompt and answer, token by token."""
        settings = copy.deepcopy(config)  # `generate` takes unset fields from the model's config
        settings.update(**self.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
        return (
            settings.get_generation_mode(others.get("assistant_model")).value in ONE_ROW
            and (settings.num_return_sequences or 1) == 1
            and settings.use_cache is not False
            and settings.cache_implementation is None
            and settings.prefill_chunk_size is None
            and not settings.token_healing
            and others.get("custom_generate") is None
        )

    def new_memory(self, open_image: OpenImage | None = None) -> ChatMemory:
        """Return a ChatMemory for conversations of this model, to pass to each call of `chat` or `chat_stream`.

        open_image: opens the images of every call with this memory, unless the call passes another function.
        """
        return ChatMemory(open_image=open_image)

    def chat(
        self,
        tokenizer: PreTrainedTokenizer,
        query: str,
        history: History | None = None,
        system: str = SYSTEM,
        append_history: bool = True,
        stream: None = None,
        stop_words_ids: list[list[int]] | None = None,
        generation_config: GenerationConfig | None = None,
        memory: ChatMemory | None = None,
        open_image: OpenImage | None = None,
        **kwargs: Any,
    ) -> tuple[str, History]:
        """Return the answer to `query` and the history with it, (question, answer) pairs; `history` is not changed.

        Images named in the text are opened, from any path or address unless `open_image` is given: a function from a
        reference to a PIL image (`image_loading_qwen.OpenImage`). Images and turns that `memory` (`new_memory()`)
        holds are not computed again. `kwargs` go to `generate`, except `max_window_size`.
        Raise ValueError for a base model and for arguments of other types, ImageError if an image cannot be opened,
        LogitsError if logits are not finite.
        """
        if stream is not None:
            raise ValueError("chat has no `stream`; use model.chat_stream(..), which yields the growing answer")
        call = ChatCall(
            tokenizer, query, history, system, stop_words_ids, generation_config, memory, open_image, kwargs
        )
        inputs, recalled = self._chat_inputs(call)
        ids = first_row(self.generate(**inputs))
        if memory is not None and recalled is not None:
            memory.remember(self, recalled, ids)
        answer = decode_answer(ids[inputs["input_ids"].shape[1] :], tokenizer)
        kept = list(history or [])
        return answer, [*kept, (query, answer)] if append_history else kept

    def chat_stream(
        self,
        tokenizer: PreTrainedTokenizer,
        query: str,
        history: History | None = None,
        system: str = SYSTEM,
        stop_words_ids: list[list[int]] | None = None,
        logits_processor: list[LogitsProcessor] | None = None,
        generation_config: GenerationConfig | None = None,
        memory: ChatMemory | None = None,
        open_image: OpenImage | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        """Return an iterator over the growing answer to `query`, one step per generated token; arguments as in `chat`.

        The text keeps box and phrase tags, and lacks bytes that do not make a character yet. An error during generation
        is raised in the caller.
        """
        call = ChatCall(
            tokenizer, query, history, system, stop_words_ids, generation_config, memory, open_image, kwargs
        )
        call.check(self.config)  # here, not at the first step, so the traceback shows the call
        return self._stream(call, logits_processor)

    def _stream(self, call: ChatCall, logits_processor: list[LogitsProcessor] | None) -> Iterator[str]:
        """Yield the growing answer to a call, once per generated token."""
        tokenizer = call.tokenizer
        inputs, recalled = self._chat_inputs(call)
        items: Queue[int | None] = Queue()  # None: the end
        tokens, cancelled, failure = TokenStreamer(items.put), Event(), []

        def generate() -> None:
            try:
                criteria = [Cancelled(cancelled), *inputs.pop("stopping_criteria", [])]
                output = self.generate(
                    **inputs, logits_processor=logits_processor, streamer=tokens, stopping_criteria=criteria
                )
                if call.memory is not None and recalled is not None:
                    call.memory.remember(self, recalled, first_row(output))
            except BaseException as error:
                failure.append(error)
                tokens.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        ids, stops = [], {tokenizer.eod_id, tokenizer.im_start_id, tokenizer.im_end_id}
        try:
            while (token := items.get()) is not None:
                if token in stops:
                    continue
                ids.append(token)
                yield tokenizer.decode(ids, skip_special_tokens=True, keep_image_special=True, errors="ignore")
        finally:
            cancelled.set()
            thread.join()
        if failure:
            raise failure[0]
