"""The collator, which makes a batch of samples. It opens their images, in the data workers."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_embedding_qwen import image_spans
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.loss_qwen import target_index
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import image_files
from .chatml import IGNORE_INDEX, Sample

HOST_KEYS = ("ids", "lengths", "image_keys")  # lists of a batch for messages and meters; the model does not take them


class Batch(TypedDict, total=False):
    """A batch. It has only the keys that its samples need.

    Padded batches have "attention_mask", packed ones "position_ids" and "segment_lengths".
    """

    ids: list[str | int | None]  # of the samples, for messages
    lengths: list[int]  # tokens of each row
    input_ids: torch.Tensor  # [batch, longest]
    labels: torch.Tensor  # [batch, longest], IGNORE_INDEX where there is no target
    attention_mask: torch.Tensor  # [batch, longest]
    position_ids: torch.Tensor  # [1, tokens], from 0 in each sample
    segment_lengths: list[int]  # tokens of each sample of a packed row
    target_index: torch.Tensor  # [targets], where the labels are
    image_spans: torch.Tensor  # [spans, 2], where the images are
    image_index: torch.Tensor  # [spans], which image each span shows, if one occurs again
    pixel_values: torch.Tensor  # float32 [images, 3, image_size, image_size]
    image_features: torch.Tensor  # [images, tokens, hidden], cached output of the vision tower
    vit_features: torch.Tensor  # [images, patches, width], cached output of its ViT
    image_keys: list[str | None]  # of the images that the vision cache lacks, None for the others
    loss_weights: torch.Tensor  # [batch, longest], if a sample has another weight than 1
    sources: torch.Tensor  # [batch, longest], if samples name their sources


class FeatureCache(Protocol):
    """A cache of image features (`VisionCache`). `kind` is the key of a batch that holds them."""

    kind: str

    def key(self, reference: str) -> str | None: ...

    def get(self, key: str) -> torch.Tensor | None: ...


class ConversationCollator:
    """A function collator(samples) -> Batch. samples: those of ConversationDataset, or rows of them (PackedDataset).

    Samples become right-padded rows. The mask comes from their lengths, so <|endoftext|> inside a text is not masked.
    Packed rows become one row without padding. An empty list, which a rank may get at the end of an epoch, becomes a
    row of padding without targets.
    "target_index" and "image_spans" hold the positions of labels and images, so a step on a device need not
    synchronize to find them. Padding has 0 in "loss_weights" and -1 in "sources".
    An image that occurs several times in a batch is opened once, and "image_index" holds the image of each span.
    vision_cache: if it has the features of all images of a batch, they replace "pixel_values", and no image is opened.
    Otherwise "image_keys" names the images that it lacks.
    Raises ImageError with the id of the sample if an image cannot be opened.
    """

    def __init__(self, tokenizer: QWenTokenizer, image_size: int, *, vision_cache: FeatureCache | None = None) -> None:
        self.pad_id = tokenizer.pad_token_id
        self._span = tokenizer.img_start_id, tokenizer.image_span_tokens
        self.image_size, self.vision_cache = image_size, vision_cache

    def __call__(self, samples: Sequence[Sample] | Sequence[list[Sample]]) -> Batch:
        if not samples:
            nothing = Sample(id=None, input_ids=[self.pad_id], labels=[IGNORE_INDEX], images=[], weight=1)
            return self([nothing]) | {"ids": []}
        packed_rows = [row for row in samples if isinstance(row, list)]
        if packed_rows:
            return self._packed([checked(sample) for row in packed_rows for sample in row])
        return self._padded([checked(sample) for sample in samples if not isinstance(sample, list)])

    def _padded(self, samples: Sequence[Sample]) -> Batch:
        """Return a row for each sample, right-padded to the longest; its tensors are [batch, longest]."""
        rows = [torch.tensor(sample["input_ids"], dtype=torch.long) for sample in samples]
        labels = [torch.tensor(sample["labels"], dtype=torch.long) for sample in samples]
        mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
        batch: Batch = {
            "ids": [sample["id"] for sample in samples],
            "lengths": [len(row) for row in rows],
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.pad_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence(mask, batch_first=True),
        }
        if weights := _loss_weights(samples):
            batch["loss_weights"] = pad_sequence(weights, batch_first=True, padding_value=0.0)
        if sources := _sources(samples):
            batch["sources"] = pad_sequence(sources, batch_first=True, padding_value=-1)
        return self._completed(batch, samples)

    def _packed(self, samples: Sequence[Sample]) -> Batch:
        """Return one row without padding; its tensors are [1, tokens].

        The first token of a sample is never predicted, because no token of the same sample precedes it.
        """
        lengths = [len(sample["input_ids"]) for sample in samples]
        labels = [label for sample in samples for label in [IGNORE_INDEX, *sample["labels"][1:]]]
        batch: Batch = {
            "ids": [sample["id"] for sample in samples],
            "input_ids": torch.tensor([[token for sample in samples for token in sample["input_ids"]]]),
            "labels": torch.tensor([labels]),
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "segment_lengths": lengths,
        }
        if weights := _loss_weights(samples):
            batch["loss_weights"] = torch.cat(weights)[None]
        if sources := _sources(samples):
            batch["sources"] = torch.cat(sources)[None]
        return self._completed(batch, samples)

    def _completed(self, batch: Batch, samples: Sequence[Sample]) -> Batch:
        """Add the images and the positions of targets and images to a batch, and return it."""
        batch["target_index"] = target_index(batch["labels"])
        batch.update(self._images(samples))
        if any(sample["images"] for sample in samples):
            batch["image_spans"] = image_spans(batch["input_ids"], *self._span)
        return batch

    def _images(self, samples: Sequence[Sample]) -> Batch:
        """Return the keys of a batch for its images: their pixels or features, "image_index" and "image_keys"."""
        index: list[int] = []
        places: dict[str, int] = {}  # reference: its index among the images
        owners: dict[str, str | int] = {}  # reference: the first sample that has it
        for sample in samples:
            for reference in sample["images"]:
                index.append(places.setdefault(reference, len(places)))
                owners.setdefault(reference, sample["id"])
        if not places:
            return {}
        found: Batch = {"image_index": torch.tensor(index)} if len(places) < len(index) else {}
        if self.vision_cache is not None:
            keys = [self.vision_cache.key(reference) for reference in places]
            features = [None if key is None else self.vision_cache.get(key) for key in keys]
            known = [feature for feature in features if feature is not None]
            if len(known) == len(features):
                # The cache names the key, one of the two of Batch; mypy asks for a literal.
                return found | cast(Batch, {self.vision_cache.kind: torch.stack(known)})
            pairs = zip(keys, features, strict=True)
            found["image_keys"] = [key if feature is None else None for key, feature in pairs]
        found["pixel_values"] = torch.stack([self._open(reference, owners[reference]) for reference in places])
        return found

    def _open(self, reference: str, name: str | int) -> torch.Tensor:
        """Return the pixels of an image. Raise ImageError with the name of its sample."""
        try:
            return pixels(image_files.read(reference), self.image_size)
        except ImageError as error:
            raise ImageError(f"sample {name!r}: {error}") from error


def checked(sample: Sample) -> Sample:
    """Return the sample. Raise ValueError if it has lost a key that the collator needs."""
    missing = [key for key in ("id", "input_ids", "labels", "images", "weight") if key not in sample]
    if missing:
        raise ValueError(
            f"a sample without {', '.join(map(repr, missing))}: transformers' Trainer removes the keys that `forward` "
            "does not name from dicts and from a datasets.Dataset; give TrainingArguments remove_unused_columns=False"
        )
    return sample


def _loss_weights(samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Return the weight of each token, a tensor [tokens] for each sample; [] if all samples have weight 1."""
    if all(sample["weight"] == 1 for sample in samples):
        return []
    return [torch.full((len(sample["input_ids"]),), sample["weight"]) for sample in samples]


def _sources(samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Return the source of each token, a tensor [tokens] for each sample; [] if no sample names its source."""
    if not any("source" in sample for sample in samples):
        return []
    return [torch.full((len(sample["input_ids"]),), sample["source"]) for sample in samples]
