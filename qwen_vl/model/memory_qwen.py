"""What a conversation need not compute twice: features of its pictures, and keys and values of its earlier turns."""

import hashlib
from collections import OrderedDict

import torch

from .cache_qwen import GrowingCache
from .image_processing_qwen import open_picture, pixels


class ChatMemory:
    """Remembers the pictures and the last prompt of conversations with one model whose weights do not change.

    Pictures are known by their content, so a changed file is seen anew; the least recently used beyond `max_pictures`
    are forgotten. Earlier turns are used again as far as the new prompt begins with the very ids and pictures of the
    last one; nothing of a prompt beyond the trained length is, where the positions of all its tokens change. The last
    prompt's keys and values stay allocated until `forget_turns`. One answer at a time.
    """

    def __init__(self, max_pictures=64):
        self.max_pictures = max_pictures
        self.features = OrderedDict()  # digest of the pixels: [n_queries, hidden]
        self.forget_turns()

    def forget_turns(self):
        """Keep nothing but the pictures."""
        self.ids, self.digests, self.cache = [], [], None

    def recall(self, model, ids, references, *, turns=True):
        """Keyword arguments for `generate` with the prompt `ids`: its pictures' features and, with `turns`, a cache.

        The cache holds the tokens that the last prompt began with, and the features are those of the pictures behind
        them. `remember` must follow; without it, as after an error, the earlier turns are forgotten. PictureError.
        """
        features, digests = self.encode(model, references) if references else (None, [])
        if not turns:
            return {"image_features": features} if references else {}
        known, seen = self.common(model.config, ids, digests)
        cache = GrowingCache(model.config)
        if known:
            cache = self.cache
            cache.crop(known - cache.get_seq_length())
        self.ids, self.digests, self.cache = [], digests, cache
        remaining = {"image_features": features[seen:]} if seen < len(digests) else {}
        return {"past_key_values": cache, **remaining}

    def remember(self, ids):
        """Keep the turns that the cache of the last `recall` was filled with: the first of `ids`, prompt and answer."""
        if self.cache is None or self.cache.ntk_alpha is not None:
            return self.forget_turns()
        self.ids = ids[: self.cache.get_seq_length()]

    @torch.no_grad()
    def encode(self, model, references):
        """Features [pictures, n_queries, hidden] of the named pictures, and a digest of each one's content.

        Pictures that are not in memory go through the vision tower together.
        """
        size, visual = model.config.visual["image_size"], model.transformer.visual
        opened = {name: pixels(open_picture(name), size) for name in dict.fromkeys(references)}
        digest_of = {name: hashlib.sha256(picture.numpy().tobytes()).hexdigest() for name, picture in opened.items()}
        new = {digest_of[name]: picture for name, picture in opened.items() if digest_of[name] not in self.features}
        if new:
            features = visual(torch.stack(list(new.values())).to(visual.conv1.weight.device))
            self.features.update(zip(new, (one.clone() for one in features), strict=True))
        digests = [digest_of[name] for name in references]
        for digest in digests:
            self.features.move_to_end(digest)
        found = torch.stack([self.features[digest] for digest in digests])
        while len(self.features) > self.max_pictures:
            self.features.popitem(last=False)
        return found, digests

    def common(self, config, ids, digests):
        """How many tokens, and how many pictures among them, the prompt `ids` has in common with what is remembered.

        At least one token is left to compute, and a picture's span is taken whole or not at all.
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
