"""Image spans in a prompt, whose embeddings are replaced by the features of their images.

Source: docs/checkpoint_format.md sections 2 and 4.
"""

import torch
from torch import nn

from .configuration_qwen import QWenConfig
from .image_loading_qwen import OpenImage
from .image_processing_qwen import open_pixels
from .placement_qwen import execution_device
from .visual import VisionTower


def image_spans(input_ids: torch.Tensor, start_id: int, length: int) -> torch.Tensor:
    """Return row and first column of the ids inside each complete image span, in reading order: [spans, 2].

    start_id: the id of <img>; that of </img> is the next. length: the number of ids between them.
    Raise ValueError if a span is cut, because its features would not fit.
    """
    starts = (input_ids == start_id).nonzero()
    if input_ids.shape[1] == 1 or len(starts) == 0:  # a lone <img> is a generated token, not a span
        return starts[:0]
    ends = starts[:, 1] + length + 1
    whole = ends < input_ids.shape[1]
    whole &= input_ids[starts[:, 0], ends.clamp(max=input_ids.shape[1] - 1)] == start_id + 1
    if not whole.all():
        row, column = starts[~whole][0].tolist()
        raise ValueError(
            f"row {row}: the image span that starts at token {column} is cut or not closed by </img>; "
            f"it takes {length + 2} ids, so shorten the text around it and never the image"
        )
    return starts + torch.tensor([0, 1], device=starts.device)


class ImageEmbedding:
    """A mixin of QWenModel that puts images into the embeddings; the model sets these attributes."""

    config: QWenConfig
    wte: nn.Module
    visual: VisionTower
    runs_vision_always: bool
    training: bool

    def open_referenced(
        self, input_ids: torch.Tensor, spans: torch.Tensor, open_image: OpenImage | None
    ) -> torch.Tensor:
        """Return the pixels of the images that the ids of `spans` name: [spans, 3, size, size].

        It is called only if the caller passed neither `pixel_values` nor features. `open_image` opens each image;
        None means `read_image`. Raise ValueError if a span names no image, ImageError if an image cannot be opened.
        """
        pad_id, names = self.config.visual["image_start_id"] + 2, []
        for row, column in spans.tolist():
            ids = input_ids[row, column : column + self.config.image_span_tokens].tolist()
            name = bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")
            if not name or any(i >= 256 and i != pad_id for i in ids):
                raise ValueError(
                    f"row {row}: the image span at token {column - 1} names no image; pass `pixel_values`, "
                    "as a reference that is longer than the span travels only there"
                )
            names.append(name)
        opened = open_pixels(names, self.config.visual["image_size"], open_image)
        return torch.stack([opened[name] for name in names]).to(input_ids.device)

    def encode_images(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        vit_features: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        spans: torch.Tensor | None = None,
        open_image: OpenImage | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the spans [n, 2] of `input_ids` and their features [n, n_queries, hidden]; None without images.

        If the caller passes `spans`, the ids are not searched, so the CPU need not wait for the device.
        Raise ValueError if the number of images differs from the number of spans.
        """
        if spans is None:
            spans = image_spans(input_ids, self.config.visual["image_start_id"], self.config.image_span_tokens)
        given = [images for images in (image_features, vit_features, pixel_values) if images is not None]
        if given and (number := len(given[0] if image_index is None else image_index)) != len(spans):
            raise ValueError(f"{number} images were passed but the ids hold {len(spans)} image spans; pass one each")
        if len(spans) == 0:
            return None
        if image_features is None:
            if not given:
                pixel_values = self.open_referenced(input_ids, spans, open_image)
            if vit_features is None:
                assert pixel_values is not None  # given, or opened above
                # Do not name a weight here: ZeRO-3 would gather it, and ranks without images do not take part.
                pixel_values = pixel_values.to(execution_device(self.visual))
            image_features = self.visual(pixel_values, vit_features)
        return spans, image_features if image_index is None else image_features[image_index]

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        vit_features: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        spans: torch.Tensor | None = None,
        open_image: OpenImage | None = None,
    ) -> torch.Tensor:
        """Return embeddings [batch, length, hidden] of the ids; image features replace those of their spans.

        Arguments and errors are those of `encode_images`.
        """
        embeds = self.wte(input_ids)
        encoded = self.encode_images(
            input_ids, pixel_values, image_features, vit_features, image_index, spans, open_image
        )
        if encoded is not None:
            spans, features = encoded
            spans = spans.to(embeds.device)
            columns = spans[:, 1:] + torch.arange(self.config.image_span_tokens, device=spans.device)
            return embeds.index_put((spans[:, :1].expand_as(columns), columns), features.to(embeds))
        if self.runs_vision_always or self.trains_vision_with_others():
            # Other ranks may have images, and block in the collectives that gather weights or reduce gradients.
            size = self.config.visual["image_size"]
            embeds = embeds + 0 * self.visual(embeds.new_zeros(1, 3, size, size)).sum()
        return embeds

    def trains_vision_with_others(self) -> bool:
        """Return whether several ranks train and part of the vision tower trains with them.

        Training only: inference never runs the tower without an image.
        """
        if not self.training or not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return False
        return any(parameter.requires_grad for parameter in self.visual.parameters())
