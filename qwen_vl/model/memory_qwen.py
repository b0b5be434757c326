"""Memory of a chat: features of its images, and keys and values of its earlier turns."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from .cache_qwen import GrowingCache
from .configuration_qwen import QWenConfig
from .image_loading_qwen import OpenImage
from .image_processing_qwen import open_pixels
from .placement_qwen import execution_device
from .state_qwen import settings_digest, weights_digest

EXCHANGE = Lock()  # held while an answer takes state from a memory or puts it back, never while it computes


class Recall(NamedTuple):
    """The state that one answer takes from a memory, and what its cache is filled with."""

    inputs: dict[str, Any]  # keyword arguments for `generate`
    ids: Sequence[int] = ()  # of the whole prompt
    digests: Sequence[str] = ()  # one for each of its images
    cache: GrowingCache | None = None  # None: nothing of this answer is kept
    settings: str = ""
    weights: str = ""


class ChatMemory:
    """A memory of the images and the last prompt of conversations, and of the model that computed them.

    It holds what the cache was filled with: one row of ids, the images in it, and the state of the model. Weights,
    adapters and settings are compared at each recall. An answer takes the cache out of the memory and puts it back
    when it is complete. After an error, or during an answer in another thread, the memory has no cache.

    Images are identified by their content, so a changed file is encoded again. Beyond `max_images`, the least recently
    used are dropped. Earlier turns are reused as far as the new prompt begins with the same ids and images as the last
    one. A prompt beyond the trained length reuses nothing, because the positions of all its tokens change. The last
    prompt's keys and values stay allocated until `forget_turns`.

    `open_image` opens the images of each answer with this memory, known ones too, unless the call passes another
    function. None opens any path or address.
    """

    max_images = 64

    def __init__(self, open_image: OpenImage | None = None) -> None:
        self.open_image = open_image
        # Features [n_queries, hidden] by the digest of pixels and model.
        self.features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.forget_turns()

    def forget_turns(self) -> None:
        """Forget everything but the images."""
        self.ids: list[int] = []
        self.digests: Sequence[str] = []
        self.cache: GrowingCache | None = None
        self.model_state: tuple[str, str] | None = None  # settings and weights

    def recall(
        self,
        model: PreTrainedModel,
        ids: list[int],
        references: list[str],
        *,
        turns: bool,
        open_image: OpenImage | None,
    ) -> Recall | None:
        """Return what the prompt `ids` can reuse: the features of its images and, with `turns`, a cache.

        The cache holds the tokens that both prompts begin with, and the features are those of the images after them.
        Return None if the model is in training mode or hides its weights, because then nothing can be reused.
        If `open_image` is None, that of the memory opens them. Raise ImageError if an image cannot be opened.
        """
        weights = None if any(module.training for module in model.modules()) else weights_digest(model)
        if weights is None:
            return None
        settings = settings_digest(model)
        features: torch.Tensor | None = None
        digests: list[str] = []
        if references:
            features, digests = self.encode(model, references, settings + weights, open_image or self.open_image)
        if not turns:
            return Recall({} if features is None else {"image_features": features})
        with EXCHANGE:
            known, seen = self.common(model.config, ids, digests) if self.model_state == (settings, weights) else (0, 0)
            cache = self.cache if known and self.cache is not None else GrowingCache(model.config)
            self.forget_turns()
        cache.crop(known - cache.get_seq_length())
        remaining = {} if features is None or seen == len(digests) else {"image_features": features[seen:]}
        return Recall({"past_key_values": cache, **remaining}, ids, digests, cache, settings, weights)

    def remember(self, model: PreTrainedModel, recall: Recall, ids: list[int]) -> None:
        """Keep the cache of `recall`, which holds the first of `ids` (prompt and answer).

        Nothing is kept beyond the trained length, or if the model was changed during the answer.
        """
        cache = recall.cache
        if cache is None or cache.ntk_alpha is not None or ids[: len(recall.ids)] != recall.ids:
            return
        length = cache.get_seq_length()
        if not 0 < length <= len(ids) or settings_digest(model) != recall.settings:
            return
        if any(layer.keys.shape[0] != 1 or layer.keys.shape[2] != length for layer in cache.layers):
            return
        with EXCHANGE:
            self.ids, self.digests, self.cache = ids[:length], recall.digests, cache
            self.model_state = recall.settings, recall.weights

    @torch.no_grad()
    def encode(
        self, model: PreTrainedModel, references: list[str], state: str, open_image: OpenImage | None
    ) -> tuple[torch.Tensor, list[str]]:
        """Return the features [images, n_queries, hidden] of the named images, and a digest of each one's content.

        The digests also depend on `state`, which identifies the model. Images that are not in memory are encoded in one
        batch.
        """
        size, visual = model.config.visual["image_size"], model.transformer.visual
        opened = open_pixels(references, size, open_image)
        digest_of = {
            name: hashlib.sha256(state.encode() + image.numpy().tobytes()).hexdigest() for name, image in opened.items()
        }
        by_digest = {digest_of[name]: image for name, image in opened.items()}
        with EXCHANGE:
            found = {digest: self.features[digest] for digest in by_digest if digest in self.features}
        new = {digest: image for digest, image in by_digest.items() if digest not in found}
        if new:
            features = visual(torch.stack(list(new.values())).to(execution_device(visual)))
            found |= zip(new, (one.clone() for one in features), strict=True)
        digests = [digest_of[name] for name in references]
        with EXCHANGE:
            for digest in digests:
                self.features[digest] = found[digest]
                self.features.move_to_end(digest)
            while len(self.features) > self.max_images:
                self.features.popitem(last=False)
        return torch.stack([found[digest] for digest in digests]), digests

    def common(self, config: QWenConfig, ids: list[int], digests: list[str]) -> tuple[int, int]:
        """Return how many tokens, and how many images in them, `ids` and the last prompt have in common at the start.

        At least one token is left to compute. The span of an image counts as a whole or not at all.
        """
        image_start, span = config.visual["image_start_id"], config.image_span_tokens + 2
        at = seen = 0
        limit = 0 if len(ids) > config.seq_length else min(len(ids) - 1, len(self.ids))
        while at < limit and ids[at] == self.ids[at]:
            if ids[at] != image_start:
                at += 1
                continue
            whole = at + span <= limit and ids[at : at + span] == self.ids[at : at + span]
            if not whole or digests[seen : seen + 1] != self.digests[seen : seen + 1] or seen >= len(self.digests):
                break
            at, seen = at + span, seen + 1
        return at, seen
