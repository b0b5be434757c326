"""From a prompt with images to ids alone: images get their rows of the table, and new ones are encoded together."""

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from qwen_vl.serving.conversation import SentImage
from qwen_vl.serving.image_table import ImageRange, ImageTable

from .open_request import OpenRequest, attempt, work_through

IMAGES_A_TURN = 4  # images that the vision tower encodes before others get a turn


class NewImage(NamedTuple):
    """An image that is not in the table yet, and its place there."""

    place: ImageRange
    image: SentImage
    model: str


class ImageEncoder:
    """Gives the images of requests their ids, encodes those that are new, and hands the requests on.

    One thread waits for free rows of the table, another one encodes. So a request that waits holds up no encoding, and
    the images of several requests are encoded in one turn.
    """

    def __init__(
        self,
        table: ImageTable,
        *,
        features: Callable[[list[SentImage], str], torch.Tensor],
        add: Callable[[OpenRequest, list[int]], None],
        img_start_id: int,
    ) -> None:
        """features: of images under a model name, [images, n_queries, hidden]. add: takes a request and its ids."""
        self.table, self.features, self.add, self.img_start_id = table, features, add, img_start_id
        self.to_place: queue.Queue[OpenRequest | None] = queue.Queue()
        self.to_encode: queue.Queue[OpenRequest | None] = queue.Queue()
        self.threads = [
            threading.Thread(target=work_through, args=(self.to_place, self._place), daemon=True),
            threading.Thread(target=self._encode_all, daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; no request is waiting any more."""
        self.to_place.put(None)
        self.to_encode.put(None)
        for thread in self.threads:
            if thread.is_alive():
                thread.join()

    def put(self, opened: OpenRequest) -> None:
        """Begin with a request."""
        self.to_place.put(opened)

    def _place(self, opened: OpenRequest) -> None:
        """Give each image of a request its ids. Wait until there are free rows."""
        model, sharing = opened.request.model, opened.request.sharing_key
        seconds = None if opened.deadline is None else max(0.0, opened.deadline - time.monotonic())
        keys = [(model, sharing, image.digest) for image in opened.request.prompt.images]
        places = self.table.ranges.take(keys, seconds=seconds)
        with opened.lock:
            if opened.closed.is_set():
                self.table.ranges.release(places)
                return
            opened.ranges = places
        self.to_encode.put(opened)

    def _encode_all(self) -> None:
        """Encode the images of the requests that wait, until None comes, and hand the requests on."""
        while batch := self._waiting():
            try:
                self._encode(batch)
            except Exception:  # the mistake of one request must not end the others
                for opened in batch:
                    attempt(opened, lambda one: self._encode([one]))
            for opened in batch:
                attempt(opened, self._hand_on)

    def _waiting(self) -> list[OpenRequest]:
        """Return requests whose images may be encoded in one turn; none after the end."""
        first = self.to_encode.get()
        batch = [] if first is None else [first]
        while batch and sum(len(opened.request.prompt.images) for opened in batch) < IMAGES_A_TURN:
            try:
                following = self.to_encode.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self.to_encode.put(None)
                break
            batch.append(following)
        return batch

    def _hand_on(self, opened: OpenRequest) -> None:
        """Hand a request on. In its ids, the spans of images are ids of the table, never blank ones."""
        ids, length = list(opened.request.prompt.ids), self.table.n_queries
        starts = [place + 1 for place, one in enumerate(ids) if one == self.img_start_id]
        with opened.lock:
            if opened.closed.is_set():
                return
            for start, image in zip(starts, opened.ranges, strict=True):
                ids[start : start + length] = range(image.first, image.first + length)
        self.add(opened, ids)

    def _encode(self, batch: list[OpenRequest]) -> None:
        """Fill the rows of the images that are new."""
        by_first: dict[int, NewImage] = {}
        for opened in batch:
            with opened.lock:  # a request that is over has no rows
                images = opened.request.prompt.images if opened.ranges else ()
                for place, image in zip(opened.ranges, images, strict=True):
                    if not place.is_filled:
                        by_first.setdefault(place.first, NewImage(place, image, opened.request.model))
        new = list(by_first.values())
        for model in {one.model for one in new}:
            own = [one for one in new if one.model == model]
            for start in range(0, len(own), IMAGES_A_TURN):
                part = own[start : start + IMAGES_A_TURN]
                features = self.features([one.image for one in part], model)
                for one, rows in zip(part, features, strict=True):
                    self.table.fill(one.place, rows)
        device = self.table.rows.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the lane computes on a stream of its own
