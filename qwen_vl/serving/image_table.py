"""Images as ids: each image of a prompt gets ids beyond the vocabulary, whose embeddings are rows of a table.

A batch engine takes ids only. Ids that name one image of one sharing key let it cut prompts into pieces and reuse keys
and values: equal ids always mean equal embeddings. The first id of a prompt becomes a salt, which embeds as that id
but is another one for each sharing key, so prompts of different keys never share anything, texts included.
"""

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

SALT_BITS = 24
FIRST_SALT = 2**31 - 2**SALT_BITS  # engines keep ids as int32; salts are the last ones of it
MAX_KEYS = 10_000  # sharing keys whose salts are remembered


@dataclass
class ImageRange:
    """The ids of one image. first: the first of its `n_queries` ids. users: open requests that need its rows."""

    key: Hashable
    number: int
    first: int
    users: int = 0
    is_filled: bool = False


class ImageTable(nn.Module):
    """Embeddings of a vocabulary, of images in use, and of salts; it replaces the model's input embeddings."""

    rows: torch.Tensor

    def __init__(self, texts: nn.Module, *, vocab_size: int, hidden_size: int, n_queries: int, num_images: int) -> None:
        super().__init__()
        weight = next(texts.parameters())
        self.texts, self.vocab_size, self.n_queries, self.num_images = texts, vocab_size, n_queries, num_images
        rows = torch.zeros(num_images * n_queries, hidden_size, dtype=weight.dtype, device=weight.device)
        self.register_buffer("rows", rows, persistent=False)
        self.salted_id = 0  # what each salt embeds as
        self.ranges = Ranges(vocab_size, n_queries, num_images)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return embeddings [.., hidden] of ids, without any step whose shape depends on them."""
        known = torch.where(ids >= FIRST_SALT, self.salted_id, ids)
        is_image = known >= self.vocab_size
        words = self.texts(known.masked_fill(is_image, 0))
        images = self.rows[((known - self.vocab_size) % len(self.rows)).long()]
        return torch.where(is_image[..., None], images.to(words.dtype), words)

    def fill(self, image: ImageRange, features: torch.Tensor) -> None:
        """Write the features [n_queries, hidden] of an image into its rows."""
        row = (image.first - self.vocab_size) % len(self.rows)
        self.rows[row : row + self.n_queries] = features.to(self.rows)
        image.is_filled = True


class Ranges:
    """Which ids belong to which image. An image keeps its ids until another one needs its rows.

    Rows are reused in a circle, without those of open requests: a request that loses its pages under memory pressure
    computes its prompt again. Ids are used once. When they run out, all salts are renewed, so no prompt matches what
    the engine remembers of the ids before.
    """

    def __init__(self, vocab_size: int, n_queries: int, num_images: int) -> None:
        self.vocab_size, self.n_queries, self.num_images = vocab_size, n_queries, num_images
        self.num_numbers = (FIRST_SALT - vocab_size) // (n_queries * num_images) * num_images
        self.by_key: dict[Hashable, ImageRange] = {}
        self.by_slot: dict[int, ImageRange] = {}
        self.salts: dict[str, int] = {}
        self.number, self.salt = 0, 0
        self.released = threading.Condition()

    def take(self, keys: Sequence[Hashable], *, seconds: float | None = None) -> list[ImageRange]:
        """Return a range for each image key, and count one more user of each. Wait until rows are free.

        A key tells an image, whose features depend on nothing else. Raise TimeoutError if no rows are free in time,
        ValueError for more different images than the table has rows for.
        """
        if len(set(keys)) > self.num_images:
            raise ValueError(f"{len(set(keys))} images in one prompt; the image table holds {self.num_images}")
        taken: list[ImageRange] = []
        with self.released:
            try:
                for key in keys:
                    taken.append(self._one(key, seconds))
                    taken[-1].users += 1
            except TimeoutError:
                self.release(taken)
                raise
        return taken

    def _one(self, key: Hashable, seconds: float | None) -> ImageRange:
        """Return the range of a key, or make it the owner of the next rows that no request uses."""
        if key in self.by_key:
            return self.by_key[key]
        if not self.released.wait_for(lambda: self.num_used < self.num_images, seconds):
            raise TimeoutError("all rows of the image table are in use")
        while (owner := self.by_slot.get(self.number % self.num_images)) is not None and owner.users:
            self._count()
        if owner is not None:
            del self.by_key[owner.key]
        first = self.vocab_size + self.number * self.n_queries
        made = ImageRange(key, self.number, first)
        self.by_key[key] = self.by_slot[self.number % self.num_images] = made
        self._count()
        return made

    def _count(self) -> None:
        self.number += 1
        if self.number == self.num_numbers:
            self.number = 0
            self.salts.clear()

    def release(self, ranges: Sequence[ImageRange]) -> None:
        """Count one user less of each range. Ranges without users keep their rows until others need them."""
        with self.released:
            for image in ranges:
                image.users -= 1
            self.released.notify_all()

    def salt_of(self, sharing_key: str) -> int:
        """Return the id that begins the prompts of a sharing key. Raise RuntimeError when no salts are left."""
        with self.released:
            if sharing_key not in self.salts:
                if FIRST_SALT + self.salt >= 2**31:
                    raise RuntimeError("no salts are left for sharing keys; restart the engine")
                while len(self.salts) >= MAX_KEYS:
                    del self.salts[next(iter(self.salts))]
                self.salts[sharing_key] = FIRST_SALT + self.salt
                self.salt += 1
            return self.salts[sharing_key]

    @property
    def num_used(self) -> int:
        """Return how many images open requests use."""
        return sum(image.users > 0 for image in self.by_slot.values())
