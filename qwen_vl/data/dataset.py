"""The conversations of one file as encoded samples, whose lengths are known before training starts."""

import contextlib
import logging
from collections import UserDict

import numpy as np
from torch.utils.data import Dataset

from qwen_vl.model.image_loading_qwen import find_picture, is_local

from .chatml import OverlengthError, encode

logger = logging.getLogger(__name__)

POLICIES = ("trim", "drop", "error")


class ConversationDataset(Dataset):
    """Map-style: dataset[i] is a Sample, {"id", "input_ids", "labels", "images", "weight"} as `chatml.encode` has them.

    conversations: records as `conversations.read` returns them. Every one is encoded once at the start, without
    opening a picture, so that `lengths` and `num_pictures` (one int a sample) are exact and no sample fails later on.
    Encodings stay in memory with `lazy=False` and are made again on access with `lazy=True`.
    max_length: the most tokens of a sample, or None. A longer conversation is shortened by whole turns
    (`overlength="trim"`, dropped if its first answer does not fit), dropped ("drop"), or ends the run ("error").
    Each of them stands in `overlength`: {"id", "length", "kept_length", "action": "trimmed" | "dropped"}.
    search_dirs: where relative pictures lie; `images` then holds the paths found there, so that data sets from several
    folders can be mixed. Without it, references are passed on as written.
    options: the label options of `chatml.encode`. `is_weighted`: whether some sample has another weight than 1.
    Raises OverlengthError if no sample is left (or with "error"), ValueError for a conversation that cannot be encoded.
    """

    names = ()  # of sources, where there are several

    def __init__(
        self, conversations, tokenizer, *, max_length, lazy=True, overlength="trim", search_dirs=(), **options
    ):
        check_policy(overlength)
        self.max_length, self.search_dirs = max_length, tuple(search_dirs)
        self._tokenizer, self._options = tokenizer, options
        self.lengths, self.num_pictures, self.overlength, self.is_weighted = [], [], [], False
        self._conversations, self._encoded = [], None if lazy else []
        for conversation in conversations:
            sample, entry = fit(conversation, tokenizer, max_length=max_length, overlength=overlength, **options)
            if entry:
                self.overlength.append(entry)
            if sample:
                self._add(conversation, sample)
        report(self.overlength, len(self.lengths), max_length, overlength)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        conversation = self._conversations[index]
        if self._encoded is None:
            sample = encode(conversation, self._tokenizer, max_length=self.max_length, **self._options)
        else:
            sample = {key: value.tolist() for key, value in self._encoded[index].items()}
        return as_item(conversation["id"], sample, self.search_dirs)

    def _add(self, conversation, sample):
        self.lengths.append(len(sample["input_ids"]))
        self.num_pictures.append(len(sample["images"]))
        self.is_weighted |= sample["weight"] != 1
        self._conversations.append(conversation)
        if self._encoded is not None:
            # int32 takes a tenth of a list of ints, and forked workers share it without copying.
            kinds = {"input_ids": np.int32, "labels": np.int32, "images": object, "weight": np.float64}
            self._encoded.append({key: np.array(sample[key], dtype=kind) for key, kind in kinds.items()})


def check_policy(overlength):
    """None, or a ValueError for a policy that is not known."""
    if overlength not in POLICIES:
        raise ValueError(f"overlength: {overlength!r}; use one of {', '.join(POLICIES)}")


def fit(conversation, tokenizer, *, max_length, overlength, **options):
    """(sample, entry): the encoding within `max_length`, None where it is dropped; and what the limit did, or None.

    entry: {"id", "length", "kept_length", "action": "trimmed" | "dropped"}; see ConversationDataset.
    """
    sample = encode(conversation, tokenizer, **options)
    length = len(sample["input_ids"])
    if max_length is None or length <= max_length:
        return sample, None
    sample = None
    if overlength == "trim":
        with contextlib.suppress(OverlengthError):
            sample = encode(conversation, tokenizer, max_length=max_length, **options)
    kept = len(sample["input_ids"]) if sample else 0
    action = "trimmed" if sample else "dropped"
    return sample, {"id": conversation["id"], "length": length, "kept_length": kept, "action": action}


def report(entries, num_kept, max_length, overlength):
    """Log what the limit did to the data; raise OverlengthError where it leaves nothing, or the policy allows nothing.

    entries: those of `fit`. num_kept: how many samples are left.
    """
    if not entries:
        return
    longest = max(entries, key=lambda entry: entry["length"])
    dropped = sum(entry["action"] == "dropped" for entry in entries)
    summary = (
        f"{len(entries)} of {num_kept + dropped} conversations exceed {max_length} tokens "
        f"(the longest, {longest['id']!r}, has {longest['length']})"
    )
    if overlength == "error" or not num_kept:
        raise OverlengthError(f"{summary}; shorten them, use fewer pictures, or raise --model_max_length")
    logger.warning("%s: %d trimmed, %d dropped", summary, len(entries) - dropped, dropped)


class Sample(UserDict):
    """One sample for the collator, read like a dict: {"id", "input_ids", "labels", "images", "weight"}, maybe "source".

    No dict, as transformers' Trainer takes all keys that `forward` does not name out of dicts (remove_unused_columns).
    """


def as_item(name, sample, search_dirs):
    """What a data set gives for one sample, its local pictures as paths; a reference that is not found stays itself."""
    images = sample["images"]
    if search_dirs:
        images = [find_picture(image, search_dirs) or image if is_local(image) else image for image in images]
    keys = ("input_ids", "labels", "weight")
    return Sample({"id": name, **{key: sample[key] for key in keys}, "images": images})
