"""The conversations of one file as encoded samples, whose lengths are known before training starts."""

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .chatml import EncodeOptions, Overlength, OverlengthError, Record, Sample, fit

logger = logging.getLogger(__name__)

_Encoded = tuple[np.ndarray, np.ndarray, tuple[str, ...], float]  # input_ids, labels, images, weight


class SampleDataset(Protocol):
    """A map-style data set of samples: ConversationDataset, CachedDataset or MixedDataset."""

    names: Sequence[str]  # of its sources, where there are several
    lengths: list[int]  # tokens of each sample
    num_images: list[int]  # images of each sample
    overlength: list[Overlength]
    is_weighted: bool  # whether some sample has a weight other than 1

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class ConversationDataset(Dataset):
    """A map-style data set: dataset[i] is the Sample of a conversation, with its "id".

    conversations: records as `conversations.read` returns them. Each of them is encoded once at the start, without
    opening an image. So `lengths` and `num_images` (one int a sample) are exact, and no sample fails later.
    With `lazy=False` the encodings stay in memory. With `lazy=True` each access encodes again.
    `overlength` lists every conversation that exceeds the limit of the options, and what happened to it.
    search_dirs: the folders of relative images. `images` of a sample then holds the paths found there, so data sets
    from several folders can be mixed. Without search_dirs, references stay as written.
    Raises OverlengthError if no sample is left, or with the policy "error"; ValueError if a conversation cannot be
    encoded.
    """

    names: Sequence[str] = ()

    def __init__(
        self,
        conversations: Iterable[Record],
        tokenizer: QWenTokenizer,
        options: EncodeOptions,
        *,
        lazy: bool = True,
        search_dirs: Iterable[str] = (),
    ) -> None:
        self.options, self.search_dirs, self._tokenizer = options, tuple(search_dirs), tokenizer
        self.lengths: list[int] = []
        self.num_images: list[int] = []
        self.overlength: list[Overlength] = []
        self.is_weighted = False
        self._conversations: list[Record] = []
        self._encoded: list[_Encoded] | None = None if lazy else []
        for conversation in conversations:
            sample, entry = fit(conversation, tokenizer, options)
            if entry:
                self.overlength.append(entry)
            if sample:
                self._add(conversation, sample)
        report(self.overlength, len(self.lengths), options)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        conversation = self._conversations[index]
        if self._encoded is None:
            sample, _ = fit(conversation, self._tokenizer, self.options)
            assert sample is not None, "it was kept when the data set was built"
        else:
            ids, labels, images, weight = self._encoded[index]
            sample = Sample(input_ids=ids.tolist(), labels=labels.tolist(), images=list(images), weight=weight)
        return sample.named(conversation["id"], self.search_dirs)

    def _add(self, conversation: Record, sample: Sample) -> None:
        self.lengths.append(len(sample.input_ids))
        self.num_images.append(len(sample.images))
        self.is_weighted |= sample.weight != 1
        self._conversations.append(conversation)
        if self._encoded is not None:
            # int32 takes a tenth of the memory of a list of ints, and forked workers share it without copying.
            ids, labels = (np.array(part, dtype=np.int32) for part in (sample.input_ids, sample.labels))
            self._encoded.append((ids, labels, tuple(sample.images), sample.weight))


def report(entries: Sequence[Overlength], num_kept: int, options: EncodeOptions) -> None:
    """Log what the length limit did. Raise OverlengthError if no sample is left, or if the policy is "error".

    entries: those that `chatml.fit` returned. num_kept: the number of samples that are left.
    """
    if not entries:
        return
    longest = max(entries, key=lambda entry: entry["length"])
    dropped = sum(entry["action"] == "dropped" for entry in entries)
    summary = (
        f"{len(entries)} of {num_kept + dropped} conversations exceed {options.max_length} tokens "
        f"(the longest, {longest['id']!r}, has {longest['length']})"
    )
    if options.overlength == "error" or not num_kept:
        raise OverlengthError(f"{summary}; shorten them, use fewer images, or raise --model_max_length")
    logger.warning("%s: %d trimmed, %d dropped", summary, len(entries) - dropped, dropped)
