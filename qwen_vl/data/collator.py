"""Samples to one batch. Pictures are opened here, which is to say in the data workers."""

import torch
from torch.nn.utils.rnn import pad_sequence

from qwen_vl.model.download_qwen import PictureError
from qwen_vl.model.image_embedding_qwen import picture_spans
from qwen_vl.model.image_loading_qwen import open_picture
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.loss_qwen import target_index

from .chatml import IGNORE_INDEX

PADDING = {"loss_weights": 0.0, "sources": -1}
HOST_KEYS = (
    "ids",
    "lengths",
    "picture_keys",
)  # of a batch, for messages and meters: lists that the model does not take


class ConversationCollator:
    """collator(samples) -> {"ids", "lengths", "input_ids", "labels", "attention_mask", "target_index"}, and pictures.

    samples: what `ConversationDataset` yields; "ids" are their names, for messages, and "lengths" their numbers of
    tokens. Tensors are [batch, longest]. "target_index" [targets] and, with pictures, "picture_spans" [spans, 2] say
    where labels and pictures are, so that a step on a device need not wait to find out.
    Rows are padded on the right; the mask comes from their lengths, so that <|endoftext|> inside a text counts.
    Lists of samples (`PackedDataset`) become one row without padding instead. No samples at all, as a rank may get at
    the end of an epoch, become a row of padding in which nothing is learned.
    What concerns each token is in the batch only where it is needed: "loss_weights" if a sample has another weight
    than 1 (padding weighs 0), "sources" if the samples name theirs (padding has -1).
    pixel_values: float32 [pictures, 3, image_size, image_size], row after row; a batch without pictures has none. Where
    a picture occurs again in the batch, it is there once, and "picture_index" [spans] says which one each span shows.
    vision_cache: features of pictures by key (`VisionCache`). Where it has all of a batch's, these stand in place of
    the pictures, which are not opened; else "picture_keys" names those that it lacks, None for the others.
    Raises PictureError with the id of the sample.
    """

    def __init__(self, tokenizer, image_size, search_dirs=(), vision_cache=None):
        self.pad_id = tokenizer.pad_token_id
        self._span = tokenizer.img_start_id, tokenizer.image_span_tokens
        self.image_size, self.search_dirs, self.vision_cache = image_size, tuple(search_dirs), vision_cache

    def __call__(self, samples):
        if not samples:
            samples = [{"id": None, "input_ids": [self.pad_id], "labels": [IGNORE_INDEX], "images": [], "weight": 1}]
            return self(samples) | {"ids": []}
        if isinstance(samples[0], list):
            return self._packed([checked(sample) for row in samples for sample in row])
        samples = [checked(sample) for sample in samples]
        rows = [torch.tensor(sample["input_ids"], dtype=torch.long) for sample in samples]
        labels = [torch.tensor(sample["labels"], dtype=torch.long) for sample in samples]
        mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
        batch = {
            "ids": [sample["id"] for sample in samples],
            "lengths": [len(row) for row in rows],
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.pad_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence(mask, batch_first=True),
        }
        batch |= {key: pad_sequence(parts, True, PADDING[key]) for key, parts in _details(samples).items()}
        return self._completed(batch, samples)

    def _packed(self, samples):
        """One row without padding: {"ids", "input_ids", "labels", "position_ids"} [1, tokens], "segment_lengths".

        The first token of a sample is never predicted, as nothing of its own stands before it.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        labels = [label for sample in samples for label in [IGNORE_INDEX, *sample["labels"][1:]]]
        batch = {
            "ids": [sample["id"] for sample in samples],
            "input_ids": torch.tensor([[token for sample in samples for token in sample["input_ids"]]]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "segment_lengths": lengths,
        }
        batch |= {key: torch.cat(parts)[None] for key, parts in _details(samples).items()}
        return self._completed(batch, samples)

    def _completed(self, batch, samples):
        """The batch with its pictures, and the places of targets and pictures."""
        batch |= {"target_index": target_index(batch["labels"])} | self._pictures(samples)
        if any(sample["images"] for sample in samples):
            batch["picture_spans"] = picture_spans(batch["input_ids"], *self._span)
        return batch

    def _pictures(self, samples):
        """{"pixel_values", "picture_index", ..} of the samples, as far as they are needed."""
        index, places, owners = [], {}, {}  # by reference: its place among the pictures, the sample it is first in
        for sample in samples:
            for reference in sample["images"]:
                index.append(places.setdefault(reference, len(places)))
                owners.setdefault(reference, sample["id"])
        if not places:
            return {}
        found = {"picture_index": torch.tensor(index)} if len(places) < len(index) else {}
        if self.vision_cache is not None:
            keys = [self.vision_cache.key(reference, self.search_dirs) for reference in places]
            features = [None if key is None else self.vision_cache.get(key) for key in keys]
            if all(known is not None for known in features):
                return found | {self.vision_cache.kind: torch.stack(features)}
            missing = zip(keys, features, strict=True)
            found["picture_keys"] = [key if known is None else None for key, known in missing]
        found["pixel_values"] = torch.stack([self._open(reference, owners[reference]) for reference in places])
        return found

    def _open(self, reference, name):
        try:
            return pixels(open_picture(reference, search_dirs=self.search_dirs), self.image_size)
        except PictureError as error:
            raise PictureError(f"sample {name!r}: {error}") from error


def checked(sample):
    """The sample; ValueError for one that has lost what the collator needs."""
    missing = [key for key in ("id", "input_ids", "labels", "images", "weight") if key not in sample]
    if missing:
        raise ValueError(
            f"a sample without {', '.join(map(repr, missing))}: transformers' Trainer takes out of dicts, and of a "
            "datasets.Dataset, what `forward` does not name; give its TrainingArguments remove_unused_columns=False"
        )
    return sample


def _details(samples):
    """{"loss_weights", "sources"}: a tensor [tokens] for each sample; a key that says nothing is left out."""
    lengths, details = [len(sample["input_ids"]) for sample in samples], {}
    if any(sample["weight"] != 1 for sample in samples):
        weights = zip(lengths, samples, strict=True)
        details["loss_weights"] = [torch.full((length,), sample["weight"]) for length, sample in weights]
    if any("source" in sample for sample in samples):
        sources = zip(lengths, samples, strict=True)
        details["sources"] = [torch.full((length,), sample["source"]) for length, sample in sources]
    return details
