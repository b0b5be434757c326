"""Conversation with a model: prompts in ChatML, answers, stop words, streaming.

Source: docs/checkpoint_format.md section 6.
"""

import copy
from queue import Queue
from threading import Event, Thread
from typing import NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .image_loading_qwen import open_picture
from .image_processing_qwen import pixels
from .memory_qwen import ChatMemory

SYSTEM = "You are a helpful assistant."
MAX_WINDOW_SIZE = 6144
PICTURE_MARKS = ("<img>", "</img>", "<imgpad>")
ONE_ROW = ("greedy_search", "sample")  # ways of generation that fill one row of a cache, in order
MADE_BY_CHAT = (  # with a memory, nobody else may say what is computed
    *("past_key_values", "input_ids", "inputs", "inputs_embeds", "position_ids"),
    *("pixel_values", "image_features", "vit_features"),
)


class Prompt(NamedTuple):
    """What is sent to the model: the text for the eye, its ids and the pictures that they refer to."""

    text: str
    ids: list
    references: list


class StopWords(LogitsProcessor):
    """After one of `stop_words_ids` (lists of ids) a row can only continue with `eos_token_id`."""

    def __init__(self, stop_words_ids, eos_token_id):
        self.stop_words_ids = [list(word) for word in stop_words_ids]
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids, scores):
        rows = [row.tolist() for row in input_ids[:, -max(map(len, self.stop_words_ids)) :]]
        for i, row in enumerate(rows):
            if any(row[-len(word) :] == word for word in self.stop_words_ids):
                scores[i] = -float("inf")
                scores[i, self.eos_token_id] = 0.0
        return scores


def stop_word_processors(stop_words_ids, eos_token_id):
    """The logits processors, one or none, that end a row after a stop word; ValueError for malformed lists."""
    words = check_stop_words(stop_words_ids)
    ends = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    words = [word for word in words if word not in [[end] for end in ends]]
    return [StopWords(words, ends[0])] if words else []


def check_stop_words(stop_words_ids) -> list:
    """Return stop words as new lists of ids; raise ValueError for anything but lists of ids, such as [[13], [9, 8]]."""
    is_nested = isinstance(stop_words_ids, list | tuple) and all(isinstance(w, list | tuple) for w in stop_words_ids)
    ids = [i for word in stop_words_ids for i in word] if is_nested else [None]
    if not ids or not all(stop_words_ids) or not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(
            f"stop_words_ids is {stop_words_ids!r:.80}; pass a non-empty list of non-empty lists of ids, one list a "
            "word: [tokenizer.encode('Observation:')]"
        )
    return [list(word) for word in stop_words_ids]


def check_conversation(tokenizer, query, history, system) -> None:
    """Raise ValueError, which says what to pass, for a prompt of other types than `make_context` reads."""
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
            f"query is {query!r:.80}; pass a string, in which <img>path</img> names a picture "
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


def check_window(max_window_size) -> None:
    """Raise ValueError unless `max_window_size` is a positive number."""
    is_number = isinstance(max_window_size, int | float) and not isinstance(max_window_size, bool)
    if not is_number or not max_window_size >= 1:
        raise ValueError(f"max_window_size is {max_window_size!r:.80}; pass a positive number of tokens")


def make_context(tokenizer, query, history=None, system=SYSTEM, max_window_size=MAX_WINDOW_SIZE, chat_format="chatml"):
    """The Prompt for `query` after `history`, a list of (question, answer) pairs.

    Control markers in anybody's text are plain text. The oldest turns are left out until the prompt has fewer than
    `max_window_size` ids; system and query always stay. An answer of None leaves an empty line in its place. Only
    questions name pictures: a picture tag in an answer or in the system message is text, and nothing is opened for it.
    Raises ValueError for what is no such conversation, for another chat format and for unclosed picture tags.
    """
    check_conversation(tokenizer, query, history, system)
    check_window(max_window_size)
    if chat_format == "raw":
        ids, references = tokenizer.encode_message(query, control_tokens=True)
        return Prompt(query, ids, references)
    if chat_format != "chatml":
        raise ValueError(f"chat_format is {chat_format!r}; use 'chatml' or 'raw'")
    newline = tokenizer.encode("\n")

    def turn(role, content, encoded=None):
        """One message as a Prompt: start marker, role, newline, content (`encoded`: ids, references), end marker."""
        ids, references = encoded or tokenizer.encode_message(content)
        role_ids = [tokenizer.im_start_id, *tokenizer.encode(role), *newline]
        text = f"<|im_start|>{role}\n{content}<|im_end|>"
        return Prompt(text, [*role_ids, *ids, tokenizer.im_end_id], references)

    def without_pictures(role, content):
        """Return a turn that no user wrote: a picture tag in it is text, whole or half."""
        if not any(mark in content for mark in PICTURE_MARKS):
            return turn(role, content)
        tags = tokenizer.text_tags - {*PICTURE_MARKS}
        return turn(role, content, (tokenizer.encode(content, allowed_special=tags, disallowed_special=()), []))

    opening = without_pictures("system", system)
    question = turn("user", query)
    answer_start = Prompt(
        "<|im_start|>assistant\n", [tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline], []
    )
    used = len(opening.ids) + len(question.ids) + len(answer_start.ids) + 2 * len(newline)
    kept = []
    for asked, answered in reversed(history or []):
        reply = Prompt("", [], []) if answered is None else without_pictures("assistant", answered)
        pair = [turn("user", asked), reply]
        used += sum(len(message.ids) + len(newline) for message in pair)
        if used >= max_window_size:
            break
        kept = pair + kept
    messages = [opening, *kept, question, answer_start]
    return Prompt(
        "\n".join(message.text for message in messages),
        [i for n, message in enumerate(messages) for i in ([*newline] if n else []) + message.ids],
        [reference for message in messages for reference in message.references],
    )


def decode_answer(ids, tokenizer, chat_format="chatml", errors="replace"):
    """The text of a generated answer: `ids` (without the prompt) up to the first stop token, stripped of white space.

    ChatML ends at <|im_end|> or <|im_start|>; a raw answer leaves out every <|endoftext|>.
    """
    ids = [int(i) for i in ids]
    if chat_format == "raw":
        ids = [i for i in ids if i != tokenizer.eod_id]
        return tokenizer.decode(ids, errors=errors).strip()
    stops = {tokenizer.im_start_id, tokenizer.im_end_id}
    end = next((n for n, i in enumerate(ids) if i in stops), len(ids))
    ids = ids[:end]
    while ids and ids[-1] == tokenizer.eod_id:
        ids.pop()
    return tokenizer.decode(ids, errors=errors).strip()


def first_row(output) -> list:
    """Return the ids of the first row that `generate` made, whether it returned a tensor or more than that."""
    return (output if isinstance(output, torch.Tensor) else output.sequences)[0].tolist()


class TokenQueue(BaseStreamer):
    """Hands each generated id to another thread; `put` with the prompt is ignored."""

    def __init__(self):
        self.items, self.prompt_seen = Queue(), False

    def put(self, value):
        if self.prompt_seen:  # [rows], or [1, tokens] of an assisted generation
            for token in (value[:1] if value.dim() == 1 else value[0]).tolist():
                self.items.put(token)
        self.prompt_seen = True

    def end(self):
        self.items.put(None)


class Cancelled(StoppingCriteria):
    """Ends generation when the reader of a stream has gone."""

    def __init__(self):
        self.event = Event()

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class ChatMixin:
    """`chat`, `chat_stream` and their memory for the complete model."""

    def _chat_inputs(self, tokenizer, query, history, system, stop_words_ids, generation_config, memory, kwargs):
        """Return keyword arguments for `generate`, ready for one conversation, and the Recall of the memory or None.

        Takes `max_window_size` out of `kwargs`.
        """
        self._check_chat(tokenizer, query, history, system, stop_words_ids, generation_config, memory, kwargs)
        config = copy.deepcopy(generation_config if generation_config is not None else self.generation_config)
        chat_format = config.to_dict().get("chat_format", "chatml")
        if chat_format != "chatml":
            raise ValueError(
                f"generation_config.chat_format is {chat_format!r}: this is a base model, not a chat model; use "
                "`generate`, or fine-tune it; if these weights were trained in ChatML, set "
                "model.generation_config.chat_format = 'chatml'"
            )
        windows = (kwargs.pop("max_window_size", None), config.to_dict().get("max_window_size"), MAX_WINDOW_SIZE)
        window = next(window for window in windows if window is not None)
        prompt = make_context(tokenizer, query, history, system, window, chat_format)
        config.eos_token_id = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
        config.pad_token_id = tokenizer.eod_id if config.pad_token_id is None else config.pad_token_id
        others = config.update(**kwargs)  # what is no generation setting goes to `generate` as it is
        inputs = {"input_ids": torch.tensor([prompt.ids], device=self.device), "generation_config": config, **others}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if stop_words_ids is not None and len(stop_words_ids):
            inputs["stop_words_ids"] = stop_words_ids
        turns = self._fills_one_row(config, others)
        recalled = None if memory is None else memory.recall(self, prompt.ids, prompt.references, turns=turns)
        if recalled is not None:
            inputs |= recalled.inputs
        elif prompt.references:
            size = self.config.visual["image_size"]
            opened = {name: pixels(open_picture(name), size) for name in dict.fromkeys(prompt.references)}
            inputs["pixel_values"] = torch.stack([opened[name] for name in prompt.references]).to(self.device)
        return inputs, recalled

    def _check_chat(self, tokenizer, query, history, system, stop_words_ids, generation_config, memory, kwargs):
        """Raise ValueError, which says what to pass, for arguments of `chat` that cannot be meant."""
        check_conversation(tokenizer, query, history, system)
        if stop_words_ids is not None and not (isinstance(stop_words_ids, list | tuple) and len(stop_words_ids) == 0):
            check_stop_words(stop_words_ids)
        if not isinstance(generation_config, GenerationConfig | None):
            raise ValueError(
                f"generation_config is a {type(generation_config).__name__}; pass a transformers.GenerationConfig, or "
                "each setting as a keyword argument"
            )
        if memory is not None and not callable(getattr(memory, "recall", None)):
            raise ValueError(f"memory is a {type(memory).__name__}; pass model.new_memory()")
        if kwargs.get("max_window_size") is not None:
            check_window(kwargs["max_window_size"])
        twice = [name for name in MADE_BY_CHAT if memory is not None and kwargs.get(name) is not None]
        if twice:
            raise ValueError(f"{', '.join(twice)}: chat makes this itself from query, history and memory; leave it out")
        if tokenizer.image_span_tokens != self.config.image_span_tokens:
            raise ValueError(
                f"the tokenizer writes {tokenizer.image_span_tokens} ids a picture, the model has "
                f"{self.config.image_span_tokens} queries; load both from the same folder"
            )

    def _fills_one_row(self, config, others):
        """Return whether `generate` fills one row of a plain cache with the prompt and its answer, token by token."""
        settings = copy.deepcopy(config)  # `generate` takes what is not set from the model's own
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

    def new_memory(self):
        """A ChatMemory for the conversations of this model, to pass to each call of `chat` or `chat_stream`."""
        return ChatMemory()

    def chat(
        self,
        tokenizer,
        query,
        history=None,
        system=SYSTEM,
        append_history=True,
        stream=None,
        stop_words_ids=None,
        generation_config=None,
        memory=None,
        **kwargs,
    ):
        """The answer to `query` and the history with it: (str, list of (question, answer)); `history` is not changed.

        Pictures named in the text are opened. With `memory` (`new_memory()`), pictures and turns that it knows are not
        computed again. `kwargs` go to `generate`, but for `max_window_size`.
        Raises ValueError for a base model and for arguments of other types, PictureError for a picture that cannot be
        opened, LogitsError for weights whose logits are not finite.
        """
        if stream is not None:
            raise ValueError("chat has no `stream`; use model.chat_stream(..), which yields the growing answer")
        inputs, recalled = self._chat_inputs(
            tokenizer, query, history, system, stop_words_ids, generation_config, memory, kwargs
        )
        ids = first_row(self.generate(**inputs))
        if recalled is not None:
            memory.remember(self, recalled, ids)
        answer = decode_answer(ids[inputs["input_ids"].shape[1] :], tokenizer)
        kept = list(history or [])
        return answer, [*kept, (query, answer)] if append_history else kept

    def chat_stream(
        self,
        tokenizer,
        query,
        history=None,
        system=SYSTEM,
        stop_words_ids=None,
        logits_processor=None,
        generation_config=None,
        memory=None,
        **kwargs,
    ):
        """Return an iterator over the growing answer to `query`, one step a generated token; arguments as in `chat`.

        Box and phrase tags are kept; bytes that do not make a character yet are left out. An error during generation
        is raised in the caller.
        """
        arguments = (tokenizer, query, history, system, stop_words_ids, generation_config, memory, kwargs)
        self._check_chat(*arguments)  # here and not at the first step: the call is where the mistake is
        return self._stream(arguments, logits_processor)

    def _stream(self, arguments, logits_processor):
        """Yield the growing answer, once per generated token; `arguments` are those of `_chat_inputs`."""
        tokenizer, *_, memory, _ = arguments
        inputs, recalled = self._chat_inputs(*arguments)
        tokens, cancelled, failure = TokenQueue(), Cancelled(), []

        def generate():
            try:
                criteria = [cancelled, *inputs.pop("stopping_criteria", [])]
                output = self.generate(
                    **inputs, logits_processor=logits_processor, streamer=tokens, stopping_criteria=criteria
                )
                if recalled is not None:
                    memory.remember(self, recalled, first_row(output))
            except BaseException as error:
                failure.append(error)
                tokens.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        ids, stops = [], {tokenizer.eod_id, tokenizer.im_start_id, tokenizer.im_end_id}
        try:
            while (token := tokens.items.get()) is not None:
                if token in stops:
                    continue
                ids.append(token)
                yield tokenizer.decode(ids, skip_special_tokens=True, keep_image_special=True, errors="ignore")
        finally:
            cancelled.event.set()
            thread.join()
        if failure:
            raise failure[0]
