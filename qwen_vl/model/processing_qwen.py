"""A processor of texts and images: the batch that the model reads."""

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, PreTrainedTokenizer, ProcessorMixin
from transformers.utils import cached_file

from .configuration_qwen import QWenConfig
from .image_loading_qwen import OpenImage, SearchDirs
from .image_processing_qwen import QWenImageProcessor
from .list_format_qwen import IMG_END, IMG_START
from .tokenization_qwen import QWenTokenizer

IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
WITHOUT_EFFECT = ("videos", "audio", "truncation", "add_special_tokens", "return_mm_token_type_ids")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class QWenProcessor(ProcessorMixin):
    """A tokenizer and an image processor behind one call.

    `processor(text="Picture 1: <img></img>\\nWhat is it?", images=[image])` -> BatchFeature with input_ids [N, T],
    attention_mask [N, T] and, if there are images, pixel_values [images, 3, S, S] in the order of the spans.
    """

    image_token = IMG_START + IMG_END  # the text of an image without a reference; its ids are the whole span

    def __init__(
        self, image_processor: QWenImageProcessor, tokenizer: PreTrainedTokenizer, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if "image_span_tokens" not in tokenizer.init_kwargs:
            raise ValueError(
                f"tokenizer: {type(tokenizer).__name__} makes no image spans; use that of a Qwen-VL checkpoint"
            )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        padding_side: str | None = None,
        control_tokens: bool = True,
        return_tensors: str | None = "pt",
        search_dirs: SearchDirs = (),
        images_kwargs: dict[str, Any] | None = None,
        open_image: OpenImage | None = None,
        return_text_replacement_offsets: bool = False,
        **others: Any,
    ) -> BatchFeature:
        """Return input_ids, attention_mask and pixel_values for one text or a list of texts.

        images: one image or a list, nested or flat, of what `read_image` takes: one for each `<img>..</img>` in the
        texts, in order. A nested list has one entry per text, and is compared text by text. Without `images` the
        references in the texts are opened. control_tokens: whether the text is a whole prompt, in which markers such
        as <|im_start|> are tokens and not plain text. padding, padding_side: as in `tokenizer.pad`.
        search_dirs, images_kwargs (timeout, max_bytes, max_pixels): as in `read_image`. open_image: opens everything
        but PIL images instead of `read_image`. It is a function from a reference to a PIL image, for a server that
        decides what a request may read.
        return_text_replacement_offsets: adds what vLLM asks for, the text of each blank span. `others` are arguments
        of other processors, such as videos=None; all of them are None or False, but for `add_special_tokens`.
        Raise ValueError if images and spans do not match, TypeError for an argument of another kind, ImageError if an
        image cannot be opened.
        """
        _refuse(others)
        if text is None and images is None:
            raise ValueError("nothing to process; give text, images or both")
        features = {}
        if text is not None:
            texts = _list_of_texts(text)
            encoded = [self.tokenizer.encode_message(item, control_tokens=control_tokens) for item in texts]
            rows = [ids for ids, _ in encoded]
            images = _images_of([references for _, references in encoded], images)
            features = dict(self.tokenizer.pad({"input_ids": rows}, padding=padding, padding_side=padding_side))
        if images:
            features |= self.image_processor(
                images, search_dirs=search_dirs, open_image=open_image, **(images_kwargs or {})
            )
        batch = BatchFeature(features, tensor_type=return_tensors)
        if return_text_replacement_offsets and text is not None:  # after the conversion, since they are no tensors
            blank = {"type": "image", "replacement": self.image_token}
            batch["text_replacement_offsets"] = [[blank] * item.count(self.image_token) for item in texts]
        return batch

    @property
    def image_token_id(self) -> int:
        """Return the id that each vector of an image without a reference has."""
        return self.tokenizer.img_pad_id

    @property
    def image_token_ids(self) -> list[int]:
        """Return the ids of vectors of images; in a span with a reference, its bytes come first."""
        return [self.image_token_id]

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Any] | None = None, **others: Any) -> dict[str, Any]:
        """Return for vLLM how many ids and how many rows of pixel_values each image has, whatever its size."""
        number, span = len(image_sizes or ()), self.tokenizer.image_span_tokens + 2
        return {"num_image_tokens": [span] * number, "num_image_patches": [1] * number}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> "QWenProcessor":
        """Return the processor of a checkpoint folder or hub id.

        A checkpoint without processor files, such as the published ones, has one made of its tokenizer and config.
        Raise ValueError if the tokenizer's image span and the config's number of queries differ.
        """
        # Our own classes: the Auto classes, which the base class uses, would ask whether to trust the code.
        path = pretrained_model_name_or_path
        kwargs.pop("trust_remote_code", None)
        tokenizer = QWenTokenizer.from_pretrained(path, **kwargs)
        config = QWenConfig.from_pretrained(path, **kwargs) if _has_file(path, "config.json", kwargs) else None
        if config is None or any(_has_file(path, name, kwargs) for name in IMAGE_PROCESSOR_FILES):
            image_processor = QWenImageProcessor.from_pretrained(path, **kwargs)
        else:
            image_processor = QWenImageProcessor(config.visual["image_size"])
        processor = cls(image_processor, tokenizer, chat_template=tokenizer.chat_template)
        if config is not None:
            processor.check_fits(config)
        return processor

    def check_fits(self, config: QWenConfig) -> None:
        """Raise ValueError unless image spans and images have the sizes that a model with this config reads."""
        pairs = (
            ("tokenizer image_span_tokens", self.tokenizer.image_span_tokens, "n_queries", config.image_span_tokens),
            ("image processor image_size", self.image_processor.image_size, "image_size", config.visual["image_size"]),
        )
        wrong = [f"{ours} is {have}, config.visual.{key} {want}" for ours, have, key, want in pairs if have != want]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}: use the files of one checkpoint, or make the numbers equal")


QWenProcessor.register_for_auto_class("AutoProcessor")


def _refuse(others: dict[str, Any]) -> None:
    """Raise TypeError for arguments of a call that this processor does not have."""
    unknown = sorted(others.keys() - {*WITHOUT_EFFECT})
    if unknown:
        raise TypeError(f"unknown arguments: {', '.join(unknown)}; see the docstring of QWenProcessor.__call__")
    wanted = [name for name, value in others.items() if name != "add_special_tokens" and value not in (None, False)]
    if wanted:
        raise TypeError(f"{', '.join(wanted)}: Qwen-VL reads text and images, and never cuts a text; leave it out")


def _has_file(path: str, name: str, kwargs: dict[str, Any]) -> bool:
    """Return whether a checkpoint folder or hub repository holds a file."""
    options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **options) is not None


def _list_of_texts(text: Any) -> list[str]:
    """Return one text or several as a list. Raise ValueError for other types and for empty texts."""
    texts = [text] if isinstance(text, str) else text
    good = isinstance(texts, list | tuple) and texts and all(isinstance(item, str) and item for item in texts)
    if not good:
        raise ValueError(
            f"text: {text!r:.80}; use a string or a list of strings, none of them empty; a conversation is for "
            "model.chat, and its prompt is make_context(tokenizer, query, history).text"
        )
    return list(texts)


def _images_of(references: list[list[str]], images: Any) -> list[Any]:
    """Return the images of a batch, one for each span: the given ones, by default the references.

    references: those in the spans of each text. Raise ValueError if the numbers differ.
    """
    if images is None:
        for row, names in enumerate(references):
            if "" in names:
                raise ValueError(f"text[{row}]: image {names.index('') + 1} has no reference; pass images=[..]")
        return [name for names in references for name in names]
    nested = isinstance(images, list | tuple) and any(isinstance(item, list | tuple) for item in images)
    if not nested:
        images = list(images) if isinstance(images, list | tuple) else [images]
        spans = sum(map(len, references))
        if len(images) != spans:
            raise ValueError(f"the text has {spans} <img>..</img>, images {len(images)}; give one image for each")
        return images
    if len(images) != len(references):
        raise ValueError(f"images: {len(images)} lists for {len(references)} texts; give one list a text")
    images = [list(item) if isinstance(item, list | tuple) else [item] for item in images]
    for row, (names, row_images) in enumerate(zip(references, images, strict=True)):
        if len(names) != len(row_images):
            raise ValueError(
                f"text[{row}] has {len(names)} <img>..</img>, images[{row}] {len(row_images)}; give one image for each"
            )
    return [image for row_images in images for image in row_images]
