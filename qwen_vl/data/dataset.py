"""The conversations of one or more files as encoded samples, whose lengths are known before training starts."""

import logging

import numpy as np
from torch.utils.data import Dataset

from qwen_vl.model.image_processing_qwen import find_picture, is_local

from .chatml import OverlengthError, encode

logger = logging.getLogger(__name__)

POLICIES = ("trim", "drop", "error")


class ConversationDataset(Dataset):
    """Map-style: dataset[i] is {"id", "input_ids", "labels", "images"}, the lists of `chatml.encode` with the id.

    conversations: records as `conversations.read` returns them. Every one is encoded once at the start, without
    opening a picture, so that `lengths` (one int a sample) is exact and no sample fails later on. Encodings stay in
    memory with `lazy=False` and are made again on access with `lazy=True`.
    max_length: the most tokens of a sample, or None. A longer conversation is shortened by whole turns
    (`overlength="trim"`, dropped if its first exchange does not fit), dropped ("drop"), or ends the run ("error").
    Each of them stands in `overlength`: {"id", "length", "kept_length", "action": "trimmed" | "dropped"}.
    search_dirs: where relative pictures lie; `images` then holds the paths found there, so that data sets from several
    folders can be mixed. Without it, references are passed on as written.
    Raises OverlengthError if no sample is left (or with "error"), ValueError for a conversation that cannot be encoded.
    """

    def __init__(
        self,
        conversations,
        tokenizer,
        *,
        max_length,
        lazy=True,
        overlength="trim",
        search_dirs=(),
        system=None,
        control_tokens=False,
    ):
        if overlength not in POLICIES:
            raise ValueError(f"overlength: {overlength!r}; use one of {', '.join(POLICIES)}")
        self.max_length, self.search_dirs = max_length, tuple(search_dirs)
        self._tokenizer, self._policy = tokenizer, overlength
        self._options = {"system": system, "control_tokens": control_tokens}
        self.lengths, self.num_pictures, self.overlength, self._conversations = [], [], [], []
        self._encoded = None if lazy else []
        for conversation in conversations:
            self._add(conversation)
        self._report(len(conversations))

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        conversation = self._conversations[index]
        if self._encoded is None:
            sample = self._encode(conversation, self.max_length)
        else:
            sample = {key: value.tolist() for key, value in self._encoded[index].items()}
        return {
            "id": conversation["id"],
            "input_ids": sample["input_ids"],
            "labels": sample["labels"],
            "images": [self._locate(reference) for reference in sample["images"]],
        }

    def _encode(self, conversation, max_length):
        return encode(conversation, self._tokenizer, max_length=max_length, **self._options)

    def _add(self, conversation):
        """Take a conversation in, whole, trimmed, or not at all."""
        sample = self._encode(conversation, None)
        length = len(sample["input_ids"])
        if self.max_length is not None and length > self.max_length:
            sample = self._shortened(conversation)
            kept = len(sample["input_ids"]) if sample else 0
            action = "trimmed" if sample else "dropped"
            self.overlength.append({"id": conversation["id"], "length": length, "kept_length": kept, "action": action})
            if not sample:
                return
            length = kept
        self.lengths.append(length)
        self.num_pictures.append(len(sample["images"]))
        self._conversations.append(conversation)
        if self._encoded is not None:
            # int32 takes a tenth of a list of ints, and forked workers share it without copying.
            images = np.array(sample["images"], dtype=object)
            ids, labels = (np.array(sample[key], dtype=np.int32) for key in ("input_ids", "labels"))
            self._encoded.append({"input_ids": ids, "labels": labels, "images": images})

    def _shortened(self, conversation):
        """The encoding of as many turns as fit, or None where the policy or the first exchange forbids it."""
        if self._policy != "trim":
            return None
        try:
            return self._encode(conversation, self.max_length)
        except OverlengthError:
            return None

    def _report(self, num_given):
        """Log what the limit did to the data; raise where it leaves nothing, or the policy allows nothing."""
        if not self.overlength:
            return
        longest = max(self.overlength, key=lambda entry: entry["length"])
        trimmed = sum(entry["action"] == "trimmed" for entry in self.overlength)
        summary = (
            f"{len(self.overlength)} of {num_given} conversations exceed {self.max_length} tokens "
            f"(the longest, {longest['id']!r}, has {longest['length']})"
        )
        if self._policy == "error" or not self.lengths:
            raise OverlengthError(f"{summary}; shorten them, use fewer pictures, or raise --model_max_length")
        logger.warning("%s: %d trimmed, %d dropped", summary, trimmed, len(self.overlength) - trimmed)

    def _locate(self, reference):
        """Where a local picture lies; the reference itself if it is not in `search_dirs`, or no path."""
        if not self.search_dirs or not is_local(reference):
            return reference
        return find_picture(reference, self.search_dirs) or reference
