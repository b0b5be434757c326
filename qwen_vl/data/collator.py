"""Samples to one batch. Pictures are opened here, which is to say in the data workers."""

import torch
from torch.nn.utils.rnn import pad_sequence

from qwen_vl.model.image_processing_qwen import PictureError, open_picture, pixels

from .chatml import IGNORE_INDEX


class ConversationCollator:
    """collator(samples) -> {"ids", "input_ids", "labels", "attention_mask"}, and "pixel_values" if any.

    samples: what `ConversationDataset` yields; "ids" are their names, for messages. Tensors are [batch, longest].
    Rows are padded on the right; the mask comes from their lengths, so that <|endoftext|> inside a text counts.
    pixel_values: float32 [pictures, 3, image_size, image_size], row after row; a batch without pictures has none.
    Raises PictureError with the id of the sample.
    """

    def __init__(self, tokenizer, image_size, search_dirs=()):
        self.pad_id = tokenizer.pad_token_id
        self.image_size, self.search_dirs = image_size, tuple(search_dirs)

    def __call__(self, samples):
        rows = [torch.tensor(sample["input_ids"], dtype=torch.long) for sample in samples]
        labels = [torch.tensor(sample["labels"], dtype=torch.long) for sample in samples]
        mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
        batch = {
            "ids": [sample["id"] for sample in samples],
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=self.pad_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence(mask, batch_first=True),
        }
        pictures = self._pictures(samples)
        if pictures:
            batch["pixel_values"] = torch.stack(pictures)
        return batch

    def _pictures(self, samples):
        """[3, S, S] of every picture in row order; one that occurs again in the batch is opened once."""
        opened, pictures = {}, []
        for sample in samples:
            for reference in sample["images"]:
                if reference not in opened:
                    opened[reference] = self._open(reference, sample["id"])
                pictures.append(opened[reference])
        return pictures

    def _open(self, reference, name):
        try:
            return pixels(open_picture(reference, search_dirs=self.search_dirs), self.image_size)
        except PictureError as error:
            raise PictureError(f"sample {name!r}: {error}") from error
