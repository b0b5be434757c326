"""Images opened in threads, so that those of the next batch are ready when the model is."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from qwen_vl.model.image_processing_qwen import pixels

from .records import ImageSource

THREADS = 2  # decoding and resizing leave the lock of Python


class Opener:
    """Opens images by their digest, ahead of time or when they are wanted."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.pool = ThreadPoolExecutor(THREADS)
        self.started: dict[str, Future[torch.Tensor]] = {}

    def start(self, images: Mapping[str, ImageSource]) -> None:
        """Begin to open images, given by digest."""
        for digest, source in images.items():
            if digest not in self.started:
                self.started[digest] = self.pool.submit(self.open, source)

    def open(self, source: ImageSource) -> torch.Tensor:
        """Return pixels [3, size, size]; raise ImageError if the image cannot be opened."""
        return pixels(source.open(), self.image_size)

    def take(self, digest: str, source: ImageSource) -> torch.Tensor:
        """Return pixels, opened ahead or now, and forget them; raise ImageError if the image cannot be opened."""
        future = self.started.pop(digest, None)
        return self.open(source) if future is None else future.result()

    def close(self) -> None:
        """Stop the threads; what has not begun is left."""
        self.pool.shutdown(cancel_futures=True)
