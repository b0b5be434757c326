"""One model, called by several threads: each call waits for its turn and sets its adapter."""

import copy
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from qwen_vl.model import QWenLMHeadModel

from . import attention


class Turns:
    """A lock whose waiting threads get it in the order in which they came, so none is left out."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.given = self.serving = 0

    def __enter__(self) -> None:
        with self.condition:
            ticket = self.given
            self.given += 1
            self.condition.wait_for(lambda: ticket == self.serving)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.condition:
            self.serving += 1
            self.condition.notify_all()


class ModelView(QWenLMHeadModel):
    """The weights of a model, under one adapter. A forward pass takes the lock, so passes of views never mix."""

    turns: Turns
    use: Callable[[], None]
    attends_by_request: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.turns:
            self.use()
            if kwargs.get("cache") is None or not self.attends_by_request:
                return super().__call__(*args, **kwargs)
            ends = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]["full_attention"]
            with attention.selected(self):
                return super().__call__(*args, **kwargs, **{attention.ARGUMENT: attention.PackedRequests.of(*ends)})


def view_of(model: QWenLMHeadModel, turns: Turns, use: Callable[[], None]) -> ModelView:
    """Return a view that shares the modules of `model`. use: sets the adapter, called with the turn taken."""
    view: Any = copy.copy(model)
    view.__class__ = ModelView
    view.turns, view.use, view.attends_by_request = turns, use, attention.is_used_for(model)
    return view
