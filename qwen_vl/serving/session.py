"""One conversation of a user with a model: ask, stop, ask again, correct, and keep it as training data."""

import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qwen_vl.data.validation import check_record
from qwen_vl.model.chat_qwen import SYSTEM
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.serving.conversation import Message, SentImage


@dataclass(frozen=True)
class AskedImage:
    """An image of a question. reference: a path, an address or a data URI. opened: its pixels, if known already."""

    reference: str
    opened: SentImage | None = None

    def sent(self) -> SentImage:
        """Return the pixels. Raise ImageError if the image cannot be opened."""
        return self.opened or SentImage.of(read_image(self.reference))


@dataclass(frozen=True)
class Turn:
    """A question with its images, which come before its text, and the answer. None: there is no answer yet.

    model: the name of the model that answered, if it was chosen by name.
    """

    text: str
    images: tuple[AskedImage, ...] = ()
    answer: str | None = None
    model: str | None = None


class Answerer(Protocol):
    """What writes answers: a model in this process, an engine, or a server."""

    @property
    def models(self) -> Sequence[str]:
        """Return the names that a session may choose from, the default first."""

    def answer(self, turns: Sequence[Turn], *, system: str, model: str | None, sharing_key: str) -> Iterator[str]:
        """Yield the growing answer to the last turn, the whole text so far each time. Closing it stops the answer.

        model: None for the default. sharing_key: sessions with different ones share no work, so speed tells nothing.
        """


class Session:
    """One conversation: its turns, and the images that belong to the next question.

    texts_name_images: whether `<img>` tags that a user types name images, as in the terminal. Otherwise they are
    refused, because they would become images in a training record.
    """

    def __init__(self, answerer: Answerer, *, system: str = SYSTEM, texts_name_images: bool = False) -> None:
        self.answerer, self.system, self.texts_name_images = answerer, system, texts_name_images
        self.lock = threading.Lock()
        self._halt: threading.Event | None = None  # of the answer that is being written
        self.clear()

    def clear(self) -> None:
        """Forget the conversation and its images, and stop an answer that is being written."""
        self.stop()
        self.turns: list[Turn] = []
        self.waiting: list[AskedImage] = []
        self.id = f"chat-{uuid.uuid4().hex[:12]}"

    def stop(self) -> None:
        """End the answer that is being written after its next token. What it has so far is kept."""
        if self._halt is not None:
            self._halt.set()

    @property
    def is_busy(self) -> bool:
        """Return whether an answer is being written."""
        return self._halt is not None

    @property
    def images(self) -> list[AskedImage]:
        """Return the images of the conversation in order, those of the next question last."""
        return [image for turn in self.turns for image in turn.images] + self.waiting

    def ask(self, text: str, *, model: str | None = None) -> Iterator[str]:
        """Yield the growing answer to a question with the waiting images; at the end both join the conversation.

        An error, or closing the iterator, leaves the conversation as it was. After `stop` the beginning is kept.
        Raise ValueError for an empty question and while another answer is being written.
        """
        self._check(text)
        yield from self._answer(self.turns, Turn(text, tuple(self.waiting)), model)

    def regenerate(self, *, model: str | None = None) -> Iterator[str]:
        """Yield another answer to the last question, which then replaces the old one."""
        yield from self.ask_again(len(self.turns) - 1, model=model)

    def ask_again(self, index: int, text: str | None = None, *, model: str | None = None) -> Iterator[str]:
        """Yield an answer to question `index`, with a new text if given; the turns from there on are replaced.

        Raise ValueError if there is no such question.
        """
        turn = self._turn(index)
        text = turn.text if text is None else text
        self._check(text)
        yield from self._answer(self.turns[:index], replace(turn, text=text, answer=None), model)

    def correct(self, index: int, answer: str) -> None:
        """Replace answer `index` by what the user wrote. Raise ValueError if it is empty, or while answering."""
        if not answer.strip():
            raise ValueError("the answer is empty; write what the model should have said")
        self._check_tags(answer)
        with self.lock:
            self._check_idle()
            self.turns[index] = replace(self._turn(index), answer=answer.strip())

    def record(self) -> dict[str, Any]:
        """Return the conversation as a record of the training format.

        Turns with an empty answer are left out, because nothing can be learned from them. Raise ValueError if there is
        no answer, or one that training would refuse or read as the name of an image.
        """
        turns = [turn for turn in self.turns if turn.answer]
        if not turns:
            raise ValueError("there is no answer yet; ask something first")
        said = []
        for query, turn in zip(queries(turns), turns, strict=True):
            self._check_tags(turn.answer or "")
            said += [{"from": "user", "value": query}, {"from": "assistant", "value": turn.answer}]
        own_system = {} if self.system == SYSTEM else {"system": self.system}
        record = {"id": self.id, **own_system, "conversations": said}
        wrong = [f"{found.field}: {found.message}" for found in check_record("", record) if found.is_error]
        if wrong:
            raise ValueError(f"this conversation cannot be trained on yet; edit it, then try again: {wrong[0]}")
        return record

    def _answer(self, before: list[Turn], turn: Turn, model: str | None) -> Iterator[str]:
        """Yield the growing answer to a turn after others; then these turns are the conversation."""
        with self.lock:
            self._check_idle()
            halt = self._halt = threading.Event()
            conversation = self.id
        try:
            text = ""
            stream = self.answerer.answer([*before, turn], system=self.system, model=model, sharing_key=conversation)
            for text in stream:
                yield text
                if halt.is_set():
                    break
            close = getattr(stream, "close", None)  # a generator then frees its request at once
            if close is not None:
                close()
            with self.lock:
                if self.id != conversation:  # cleared in the meantime
                    return
                self.turns = [*before, replace(turn, answer=text.strip(), model=model)]
                self.waiting = [image for image in self.waiting if image not in turn.images]
        finally:
            if self._halt is halt:
                self._halt = None

    def _check(self, text: str) -> None:
        if not text.strip():
            raise ValueError("the question is empty; write something")
        if not self.texts_name_images:
            self._check_tags(text)

    def _check_tags(self, text: str) -> None:
        if "<img>" in text or "</img>" in text:  # a training record would name an image with it
            raise ValueError("a question or answer cannot hold the tag <img>; edit it, and attach images instead")

    def _check_idle(self) -> None:
        if self._halt is not None and not self._halt.is_set():
            raise ValueError("an answer is being written; stop it first")

    def _turn(self, index: int) -> Turn:
        if not 0 <= index < len(self.turns):
            raise ValueError("there is no such question; ask something first")
        return self.turns[index]


def queries(turns: Sequence[Turn]) -> list[str]:
    """Return the text of each question with its images as tags, numbered over the conversation."""
    texts, number = [], 0
    for turn in turns:
        labels = ""
        for image in turn.images:
            number += 1
            labels += f"Picture {number}: <img>{image.reference}</img>\n"
        texts.append(labels + turn.text)
    return texts


def messages(turns: Sequence[Turn], system: str) -> list[Message]:
    """Return turns as Messages with opened images, after the system message. Raise ImageError for a bad image."""
    said = [Message("system", (system,))]
    for turn in turns:
        said.append(Message("user", (*(image.sent() for image in turn.images), turn.text)))
        if turn.answer is not None:
            said.append(Message("assistant", (turn.answer,)))
    return said
