"""Forward passes for many prompts: what prompts about the same images begin with is computed once.

Every token's keys and values lie at its own position, so rows of different lengths need no padding between their
tokens, and what lies behind a row's last token is hidden from it. A prompt is read in two passes: its prefix, which
ends with its last image, then the rest, together with that of other prompts.

In float32 the numbers of a row do not depend on the other rows. Where a matrix product has few rows, libraries take
another kernel, and where it has another length, another order of adding. So images and prefixes are computed one at a
time, no product has few rows (ROWS, COLUMNS), and the length of the keys follows from the prompt alone (STEP).
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import Cache, DynamicCache

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.image_loading_qwen import ImageError
from qwen_vl.model.placement_qwen import execution_device

from .encoding import Encoded
from .opener import Opener
from .records import ImageSource

ROWS = 8  # in float32 a pass that reads one token of each row has a multiple of so many
COLUMNS = 16  # a pass over several tokens has a multiple of so many a row
STEP = 64  # the tokens behind a prefix count as a multiple of so many in the length of the keys
AT_ONCE = 8  # images or prefixes in one pass, but for float32
MAX_IMAGES = 64  # whose features are kept, as they may come again in another prefix


class RowCache(Cache):
    """Keys and values [rows, heads, capacity, head_dim] of each layer; a token lies at its position in its own row.

    The last place is scratch, for tokens that stand for nothing. `places` [rows, length] says where the next pass
    writes. Whatever is not written yet is zero.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.rows, self.capacity = rows, capacity
        self.states: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.places = torch.empty(0, dtype=torch.long)
        self.used = 0  # positions of the longest row
        self.ntk_alpha = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values of a layer, after those of this pass are written."""
        new = (key_states, value_states)
        if layer_idx == len(self.states):
            self.states.append(self.zeros_like(new))
        places = self.places.to(key_states.device)
        rows = torch.arange(self.rows, device=places.device)[:, None]
        for buffer, states in zip(self.states[layer_idx], new, strict=True):
            buffer[rows, :, places] = states.transpose(1, 2)
        return self.states[layer_idx]

    def zeros_like(self, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return empty keys and values of a layer, with heads, width, type and place of those given."""
        keys, values = (one.new_zeros(self.rows, one.shape[1], self.capacity, one.shape[3]) for one in states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions of the longest row; 0 before the first pass."""
        return self.used

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; one may come several times."""
        index = torch.tensor(rows)
        for number, layer in enumerate(self.states):
            keys, values = (one.index_select(0, index.to(one.device)) for one in layer)
            self.states[number] = keys, values  # one layer after another, so that little is in memory twice
        self.rows = len(rows)

    def copy_prefixes(self, prefixes: dict["Prefix", list[int]]) -> None:
        """Let all rows, which are empty, begin with prefixes of the same length, each with those that are listed."""
        caches = [prefix.cache for prefix in prefixes]
        length = caches[0].get_seq_length()
        for number, first in enumerate(caches[0].layers):
            layer = []
            for part in ("keys", "values"):
                like = getattr(first, part)
                buffer = like.new_empty(self.rows, like.shape[1], self.capacity, like.shape[3])
                buffer[:, :, length:] = 0
                for prefix, rows in prefixes.items():
                    buffer[rows, :, :length] = getattr(prefix.cache.layers[number], part)[prefix.row]
                layer.append(buffer)
            self.states.append((layer[0], layer[1]))
        self.used = length


class Finished(Exception):
    """The keys and values of all layers are there: no pass reads what else the last layer computes."""


class PrefixCache(DynamicCache):
    """The keys and values of prefixes of the same length; ends the forward pass that fills it, if it may."""

    def __init__(self, num_layers: int, *, may_end: bool) -> None:
        super().__init__()
        self.num_layers, self.may_end, self.ntk_alpha = num_layers, may_end, None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of a layer; raise Finished after the last one."""
        states = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.may_end and layer_idx + 1 == self.num_layers:
            raise Finished
        return states


class Prefix(NamedTuple):
    """A row of a PrefixCache."""

    cache: PrefixCache
    row: int


class Row(NamedTuple):
    """What a pass reads of one prompt: the ids behind its prefix, from a position on."""

    ids: Sequence[int]
    start: int


class Passes:
    """The forward passes of a model in evaluation mode, and what several of them use: features and prefixes.

    `synced` is for processes that hold a part of each weight: every pass goes through the model's own `forward`, and
    `most` lets all of them take the same number. Close its `opener` at the end.
    """

    def __init__(self, model: QWenLMHeadModel, *, synced: bool = False) -> None:
        self.model, self.config = model, family.inner_model(model).config
        self.device = model.device
        self.is_exact = model.dtype == torch.float32
        self.synced = synced
        self.features: OrderedDict[str, torch.Tensor] = OrderedDict()  # digest of an image: [n_queries, hidden]
        self.prefixes: dict[bytes, Prefix] = {}
        self.opener = Opener(family.image_size(self.config))

    def most(self, number: int) -> int:
        """Return the largest of the numbers that the processes pass, if they keep step; else `number`."""
        if not self.synced:
            return number
        largest = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def read(self, cache: RowCache, rows: Sequence[Row], keep: int = 1) -> torch.Tensor:
        """Return the logits of at least the last `keep` tokens of each row: [rows, tokens, vocabulary]."""
        width = max(len(row.ids) for row in rows)
        if self.is_exact:
            width, keep = up_to(width, COLUMNS), max(keep, -(-COLUMNS // len(rows)))
        return self.forward(cache, rows, width, keep)

    def forward(self, cache: RowCache, rows: Sequence[Row], width: int = 1, keep: int = 1) -> torch.Tensor:
        """Return the logits of the last `keep` tokens of rows of at most `width`: [rows, keep, vocabulary].

        Rows that are shorter are filled on the left, with tokens that write to the scratch place.
        """
        fill = [width - len(row.ids) for row in rows]
        ids = torch.tensor([[0] * left + list(row.ids) for left, row in zip(fill, rows, strict=True)])
        ends = torch.tensor([row.start + len(row.ids) for row in rows])
        places = ends[:, None] + torch.arange(-width, 0)
        is_fill = torch.arange(width) < torch.tensor(fill)[:, None]
        positions = places.masked_fill(is_fill, 0).to(self.device)
        cache.places = places.masked_fill(is_fill, cache.capacity - 1).to(self.device)
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=self.mask(positions, cache.capacity),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        cache.used = max(cache.used, int(ends.max()))
        return output.logits

    def mask(self, positions: torch.Tensor, capacity: int) -> torch.Tensor:
        """Return the mask [rows, 1, length, capacity] in which tokens at `positions` see themselves and what is before.

        It is bool for sdpa, and to be added for eager attention.
        """
        seen = torch.arange(capacity, device=positions.device) <= positions[:, None, :, None]
        if self.config._attn_implementation != "eager":
            return seen
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    # ---- images and prefixes ----

    def encode_images(self, opened: dict[str, torch.Tensor]) -> None:
        """Compute the features of images, given as pixels by digest; those that are known are only marked as used."""
        new = [digest for digest in opened if digest not in self.features]
        visual = family.tower(self.model)
        at_once = 1 if self.is_exact else AT_ONCE
        for start in range(0, len(new), at_once):
            names = new[start : start + at_once]
            batch = torch.stack([opened[name] for name in names]).to(execution_device(visual))
            self.features |= zip(names, (one.clone() for one in visual(batch)), strict=True)

    def forget_images(self, used: Iterable[str]) -> None:
        """Forget the features that were not used for longest, beyond MAX_IMAGES; never those of `used`."""
        used = set(used)
        for digest in used & self.features.keys():
            self.features.move_to_end(digest)
        while len(self.features) > max(MAX_IMAGES, len(used)):
            self.features.popitem(last=False)

    def read_prefixes(self, wanted: dict[bytes, tuple[Encoded, list[str]]]) -> dict[bytes, str]:
        """Compute the prefixes of groups, given by an encoded prompt and its images' digests; forget all others.

        Return what is wrong with the groups whose images cannot be opened.
        """
        self.prefixes = {group: prefix for group, prefix in self.prefixes.items() if group in wanted}
        errors: dict[bytes, str] = {}
        opened: dict[str, torch.Tensor] = {}
        for group, (encoded, digests) in wanted.items():
            if group in self.prefixes:
                continue
            try:
                for source, digest in zip(encoded.images, digests, strict=True):
                    if digest not in self.features and digest not in opened:
                        opened[digest] = self.opener.take(digest, source)
            except ImageError as error:
                errors[group] = str(error)
        groups = [group for group in wanted if group not in self.prefixes and group not in errors]
        if not self.synced:
            self.encode_images(opened)
        chunks = self.chunks(groups, wanted)
        for number in range(self.most(len(chunks))):
            chunk = chunks[number] if number < len(chunks) else []
            self.read_chunk([(group, *wanted[group]) for group in chunk], opened)
        if not self.synced:
            self.forget_images(digest for group in groups for digest in wanted[group][1])
        return errors

    def chunks(self, groups: list[bytes], wanted: dict[bytes, tuple[Encoded, list[str]]]) -> list[list[bytes]]:
        """Return groups that are read together: as many as fit a pass, of one length and number of images."""
        if self.is_exact:
            return [[group] for group in groups]
        alike: dict[int, list[bytes]] = {}
        for group in groups:
            alike.setdefault(wanted[group][0].shared, []).append(group)
        return [part[i : i + AT_ONCE] for part in alike.values() for i in range(0, len(part), AT_ONCE)]

    def read_chunk(self, chunk: list[tuple[bytes, Encoded, list[str]]], opened: dict[str, torch.Tensor]) -> None:
        """Compute prefixes of the same length in one pass; without any, take part in the pass of the others."""
        ids, images = [encoded.ids[: encoded.shared] for _, encoded, _ in chunk], {}
        names = [digest for _, _, digests in chunk for digest in digests]
        if not chunk:
            start, size = family.image_start_id(self.config), family.image_size(self.config)
            ids = [[start, *[start + 2] * self.config.image_span_tokens, start + 1]]
            images["pixel_values"] = torch.zeros(1, 3, size, size, device=self.device)
        elif self.synced:
            images["pixel_values"] = torch.stack([opened[name] for name in names]).to(self.device)
        else:
            images["image_features"] = torch.stack([self.features[name] for name in names])
        cache = PrefixCache(self.config.num_hidden_layers, may_end=not self.synced)
        with contextlib.suppress(Finished):
            self.model(
                input_ids=torch.tensor(ids, device=self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **images,
            )
        self.prefixes |= {group: Prefix(cache, row) for row, (group, _, _) in enumerate(chunk)}


def up_to(number: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `number`."""
    return -(-number // step) * step


def open_features(passes: Passes, images: Sequence[ImageSource]) -> torch.Tensor:
    """Return the features of images [images, n_queries, hidden]; raise ImageError if one cannot be opened."""
    digests = [image.digest() for image in images]
    pairs = zip(digests, images, strict=True)
    opened = {digest: passes.opener.take(digest, one) for digest, one in pairs if digest not in passes.features}
    passes.encode_images(opened)
    features = torch.stack([passes.features[digest] for digest in digests])
    passes.forget_images(digests)
    return features
