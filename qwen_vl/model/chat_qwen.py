"""Conversation with a model: prompts in ChatML, answers, stop words, streaming.

Source: docs/checkpoint_format.md section 6.
"""

import copy
from queue import Queue
from threading import Event, Thread
from typing import NamedTuple

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .image_processing_qwen import open_picture, pixels
from .memory_qwen import ChatMemory

SYSTEM = "You are a helpful assistant."
MAX_WINDOW_SIZE = 6144


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
    well_formed = (
        isinstance(stop_words_ids, list) and stop_words_ids and all(isinstance(w, list) and w for w in stop_words_ids)
    )
    if not well_formed or not all(isinstance(i, int) and i >= 0 for word in stop_words_ids for i in word):
        raise ValueError(f"stop_words_ids is {stop_words_ids!r}; pass a non-empty list of non-empty lists of ids")
    ends = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    words = [word for word in stop_words_ids if word not in [[end] for end in ends]]
    return [StopWords(words, ends[0])] if words else []


def make_context(tokenizer, query, history=None, system=SYSTEM, max_window_size=MAX_WINDOW_SIZE, chat_format="chatml"):
    """The Prompt for `query` after `history`, a list of (question, answer) pairs.

    Control markers in anybody's text are plain text. The oldest turns are left out until the prompt has fewer than
    `max_window_size` ids; system and query always stay. An answer of None leaves an empty line in its place.
    Raises ValueError for another chat format and for unclosed picture tags.
    """
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

    def past_answer(content):
        """A turn that a model wrote: half a picture tag in it is text, and no reason to end the conversation."""
        try:
            return turn("assistant", content)
        except ValueError:
            ids = tokenizer.encode(content, allowed_special=set(), disallowed_special=())
            return turn("assistant", content, (ids, []))

    opening = turn("system", system)
    question = turn("user", query)
    answer_start = Prompt(
        "<|im_start|>assistant\n", [tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline], []
    )
    used = len(opening.ids) + len(question.ids) + len(answer_start.ids) + 2 * len(newline)
    kept = []
    for asked, answered in reversed(history or []):
        pair = [turn("user", asked), Prompt("", [], []) if answered is None else past_answer(answered)]
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


class TokenQueue(BaseStreamer):
    """Hands each generated id to another thread; `put` with the prompt is ignored."""

    def __init__(self):
        self.items, self.prompt_seen = Queue(), False

    def put(self, value):
        if self.prompt_seen:
            self.items.put(int(value.reshape(-1)[0]))
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
        """Keyword arguments for `generate`, ready for one conversation; takes `max_window_size` out of `kwargs`."""
        config = copy.deepcopy(generation_config if generation_config is not None else self.generation_config)
        chat_format = config.to_dict().get("chat_format", "chatml")
        if chat_format != "chatml":
            raise ValueError(
                f"generation_config.chat_format is {chat_format!r}: this is a base model, not a chat model; use "
                "`generate`, or fine-tune it; if these weights were trained in ChatML, set "
                "model.generation_config.chat_format = 'chatml'"
            )
        if tokenizer.image_span_tokens != self.config.image_span_tokens:
            raise ValueError(
                f"the tokenizer writes {tokenizer.image_span_tokens} ids a picture, the model has "
                f"{self.config.image_span_tokens} queries; load both from the same folder"
            )
        window = kwargs.pop("max_window_size", None) or config.to_dict().get("max_window_size", MAX_WINDOW_SIZE)
        prompt = make_context(tokenizer, query, history, system, window, chat_format)
        config.eos_token_id = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
        config.pad_token_id = tokenizer.eod_id if config.pad_token_id is None else config.pad_token_id
        others = config.update(**kwargs)  # what is no generation setting goes to `generate` as it is
        inputs = {"input_ids": torch.tensor([prompt.ids], device=self.device), "generation_config": config, **others}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if memory is not None:
            one_row = (config.num_beams or 1) == 1 and (config.num_return_sequences or 1) == 1
            inputs |= memory.recall(
                self, prompt.ids, prompt.references, turns=one_row and config.use_cache is not False
            )
        elif prompt.references:
            size = self.config.visual["image_size"]
            opened = {name: pixels(open_picture(name), size) for name in dict.fromkeys(prompt.references)}
            inputs["pixel_values"] = torch.stack([opened[name] for name in prompt.references]).to(self.device)
        if stop_words_ids:
            inputs["stop_words_ids"] = [list(word) for word in stop_words_ids]
        return inputs

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
        Raises ValueError for a base model and PictureError for a picture that cannot be opened.
        """
        if stream is not None:
            raise ValueError("chat has no `stream`; use model.chat_stream(..), which yields the growing answer")
        inputs = self._chat_inputs(tokenizer, query, history, system, stop_words_ids, generation_config, memory, kwargs)
        ids = self.generate(**inputs)[0].tolist()
        if memory is not None:
            memory.remember(ids)
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
        """Yields the answer to `query` as it grows, once per generated token; arguments as in `chat`.

        Box and phrase tags are kept; bytes that do not make a character yet are left out. An error during generation
        is raised in the caller.
        """
        inputs = self._chat_inputs(tokenizer, query, history, system, stop_words_ids, generation_config, memory, kwargs)
        tokens, cancelled, failure = TokenQueue(), Cancelled(), []

        def generate():
            try:
                criteria = [cancelled, *inputs.pop("stopping_criteria", [])]
                output = self.generate(
                    **inputs, logits_processor=logits_processor, streamer=tokens, stopping_criteria=criteria
                )
                if memory is not None:
                    memory.remember(output[0].tolist())
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
