"""The Qwen-VL tokenizer: byte-level BPE, special tokens after the ranks, spans of ids for image references."""

import base64
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import tiktoken
from transformers import PreTrainedTokenizer

from .chat_template_qwen import CHAT_TEMPLATE
from .list_format_qwen import IMG_END, IMG_START, ListFormat

VOCAB_FILES_NAMES = {"vocab_file": "qwen.tiktoken"}
IMAGE_SPAN_TOKENS = 256  # ids between <img> and </img>, one for each vector of the published vision tower
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMG_PAD = "<imgpad>"
BOX_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TAGS = frozenset((*BOX_TAGS, IMG_START, IMG_END, IMG_PAD))
NUM_EXTRA_TOKENS = 205  # without a meaning of their own
SPECIAL_TOKENS = (
    *(ENDOFTEXT, IM_START, IM_END),
    *(f"<|extra_{i}|>" for i in range(NUM_EXTRA_TOKENS)),
    *BOX_TAGS,
    *(IMG_START, IMG_END, IMG_PAD),
)


def read_vocabulary(path: str | os.PathLike) -> dict[bytes, int]:
    """Return {token bytes: rank} from a file with a line `base64 rank` for each token, ranks 0, 1, 2, ... in order.

    A prefix of the published ranks is a valid vocabulary. Raise ValueError, with the line number, for a malformed line.
    """
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            encoded, digits = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(digits)
        except ValueError:  # binascii.Error is one
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r} is not a base64 token, a space and its rank; "
                "use the qwen.tiktoken of a Qwen-VL checkpoint or a prefix of its lines"
            ) from None
        if rank != len(ranks) or token in ranks:
            wrong = "token occurs twice" if token in ranks else f"rank {rank} where {len(ranks)} is due"
            raise ValueError(f"{path}, line {number}: {wrong}; ranks must count 0, 1, 2, ... without gaps")
        ranks[token] = rank
    missing = [i for i in range(256) if bytes([i]) not in ranks]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of the 256 single bytes have no token, the first is {missing[0]}")
    return ranks


def _find(ids: list[int], wanted: int, start: int = 0) -> int:
    """Return the first position >= start of the id `wanted` in the list `ids`, or -1."""
    try:
        return ids.index(wanted, start)
    except ValueError:
        return -1


def _utf8(text: str) -> bytes:
    """Return the UTF-8 bytes of text; lone surrogates become U+FFFD, as tiktoken does in ordinary text."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


def special_token_names(extra_tokens: list[str]) -> tuple[str, ...]:
    """Return SPECIAL_TOKENS with names for the first <|extra_i|>. Raise ValueError for invalid names."""
    wrong = [name for name in extra_tokens if not name.strip() or name in SPECIAL_TOKENS]
    wrong += sorted({name for name in extra_tokens if extra_tokens.count(name) > 1})
    if wrong:
        raise ValueError(f"extra_tokens: {wrong}: empty, twice there, or a special token already; use other names")
    if len(extra_tokens) > NUM_EXTRA_TOKENS:
        raise ValueError(f"extra_tokens: {len(extra_tokens)} names, {NUM_EXTRA_TOKENS} tokens are free; use fewer")
    first = SPECIAL_TOKENS.index("<|extra_0|>")
    return (*SPECIAL_TOKENS[:first], *extra_tokens, *SPECIAL_TOKENS[first + len(extra_tokens) :])


class QWenTokenizer(ListFormat, PreTrainedTokenizer):
    """A tokenizer for text with image, phrase and box tags.

    `image_span_tokens` is the number of ids between <img> and </img>; it must equal the number of embeddings that the
    vision tower makes of an image. Pad and end of text are both <|endoftext|> unless the caller or the folder says
    otherwise. `extra_tokens` are names for <|extra_0|>, <|extra_1|> ..: such a name in a text or message is one token.
    """

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012 (transformers' convention)

    def __init__(
        self,
        vocab_file: str | os.PathLike | None,
        errors: str = "replace",
        image_span_tokens: int = IMAGE_SPAN_TOKENS,
        extra_tokens: Iterable[str] = (),
        **kwargs: Any,
    ) -> None:
        if vocab_file is None:
            raise OSError("no qwen.tiktoken found: a Qwen-VL tokenizer folder must contain it")
        if not isinstance(image_span_tokens, int) or image_span_tokens < 1:
            raise ValueError(f"image_span_tokens: {image_span_tokens!r}; use a positive whole number")
        self.errors = errors
        self.image_span_tokens = image_span_tokens
        self.extra_tokens = list(extra_tokens)
        self.mergeable_ranks = read_vocabulary(vocab_file)
        names = special_token_names(self.extra_tokens)
        self.special_tokens = {t: i for i, t in enumerate(names, start=len(self.mergeable_ranks))}
        self.tokenizer = tiktoken.Encoding(
            "Qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=self.mergeable_ranks, special_tokens=self.special_tokens
        )
        self.decoder = {i: t for t, i in (self.mergeable_ranks | self.special_tokens).items()}
        self._name_special_ids()
        for name in ("eos_token", "pad_token"):
            if kwargs.get(name) is None:
                kwargs[name] = ENDOFTEXT
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = CHAT_TEMPLATE
        self._add_tokens(list(kwargs.get("added_tokens_decoder", {}).values()), special_tokens=True)  # new ones raise
        if self.extra_tokens:
            kwargs["extra_tokens"] = self.extra_tokens  # saved with the folder
        super().__init__(errors=errors, image_span_tokens=image_span_tokens, **kwargs)

    def _name_special_ids(self) -> None:
        """Set eod_id, im_start_id, ... for this vocabulary, and the sets of ids that decoding keeps."""
        ids = self.special_tokens
        self.eod_id, self.im_start_id, self.im_end_id = ids[ENDOFTEXT], ids[IM_START], ids[IM_END]
        self.img_start_id, self.img_end_id, self.img_pad_id = ids[IMG_START], ids[IMG_END], ids[IMG_PAD]
        self.ref_start_id, self.ref_end_id = ids["<ref>"], ids["</ref>"]
        self.box_start_id, self.box_end_id = ids["<box>"], ids["</box>"]
        self.quad_start_id, self.quad_end_id = ids["<quad>"], ids["</quad>"]
        self.special_ids = frozenset(ids.values())
        self.image_special_tokens = frozenset(ids[tag] for tag in (*BOX_TAGS, *self.extra_tokens))
        self.text_tags = IMAGE_TAGS | frozenset(self.extra_tokens)

    # ---- vocabulary ----

    def __len__(self) -> int:
        return len(self.decoder)

    @property
    def vocab_size(self) -> int:
        """Return the number of ids, special tokens included."""
        return len(self.decoder)

    def get_vocab(self) -> dict[bytes, int]:
        """Return {bytes: rank} of the ordinary tokens, without the special ones."""
        return dict(self.mergeable_ranks)

    def _convert_token_to_id(self, token: bytes | str) -> int | None:
        return self.mergeable_ranks.get(token) if isinstance(token, bytes) else self.special_tokens.get(token)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token (bytes, or str for a special one) or a list of ids, None for unknown tokens."""
        if isinstance(tokens, (bytes, str)):
            return self._convert_token_to_id(tokens)
        return [self._convert_token_to_id(token) for token in tokens]

    def _convert_id_to_token(self, index: int) -> bytes | str:
        if index not in self.decoder:
            raise ValueError(f"unknown ids: {index} is not in [0, {len(self)})")
        return self.decoder[index]

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or a list of tokens: bytes, or str for special ones."""
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        ids = [int(i) for i in ids]
        return [self._convert_id_to_token(i) for i in ids if not skip_special_tokens or i < self.eod_id]

    def convert_tokens_to_string(self, tokens: Iterable[bytes | str]) -> str:
        """Return the text of tokens, decoded as UTF-8 with the tokenizer's error handling."""
        raw = b"".join(t.encode("utf-8") if isinstance(t, str) else t for t in tokens)
        return raw.decode("utf-8", errors=self.errors)

    def _add_tokens(self, new_tokens: Sequence[Any], special_tokens: bool = False) -> int:
        """Return 0, as the vocabulary is fixed. Raise ValueError for a token that it does not have."""
        if new_tokens and not special_tokens:
            raise ValueError("Adding regular tokens is not supported: the vocabulary is fixed by qwen.tiktoken")
        unknown = [str(token) for token in new_tokens if str(token) not in self.special_tokens]
        if unknown:
            raise ValueError(f"Adding unknown special tokens is not supported: {unknown}; use <|extra_0|>, <|extra_1|>")
        return 0

    def add_special_tokens(self, special_tokens_dict: dict[str, Any] | None, *args: Any, **kwargs: Any) -> int:
        """Give special tokens a role such as pad_token, and return 0. Raise ValueError for a token that is unknown."""
        for value in (special_tokens_dict or {}).values():
            self._add_tokens(value if isinstance(value, (list, tuple)) else [value], special_tokens=True)
        return super().add_special_tokens(special_tokens_dict, *args, **kwargs)

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str]:
        """Write qwen.tiktoken, identical to the published file for its ranks (LF line ends); return (path,)."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = os.path.join(save_directory, prefix + VOCAB_FILES_NAMES["vocab_file"])
        with open(path, "wb") as file:
            file.writelines(base64.b64encode(t) + b" %d\n" % rank for t, rank in self.mergeable_ranks.items())
        return (path,)

    # ---- text to ids ----

    def encode_message(self, text: str, *, control_tokens: bool = False) -> tuple[list[int], list[str]]:
        """Return (ids, image references) of one message. The references are those in its <img>..</img>, in order.

        Only image, phrase and box tags and `extra_tokens` become special tokens. Control markers such as <|im_end|>
        stay plain text unless `control_tokens`. If the bytes of a reference do not fit the span, it has padding alone,
        and the image must come as pixel values. Raise ValueError for an unclosed <img> or a tag inside a reference.
        """
        normal = unicodedata.normalize("NFC", text)
        allowed = self.tokenizer.special_tokens_set if control_tokens else self.text_tags
        ids, references = self._encode_text(normal, allowed, refuse_long=False)
        if references and normal != text:
            # File names on disk need not be NFC, so references keep their spelling; ids always encode NFC.
            original = re.findall(f"{IMG_START}(.*?){IMG_END}", text, flags=re.DOTALL)
            if [unicodedata.normalize("NFC", reference) for reference in original] == references:
                references = original
        return ids, references

    def tokenize(
        self,
        text: str,
        allowed_special: str | Collection[str] = "all",
        disallowed_special: str | Collection[str] = (),
        split_special_tokens: bool = False,
        **kwargs: Any,
    ) -> list[bytes | str]:
        """Return the tokens of text: bytes, and str for the special tokens in `allowed_special` (default: all).

        Raise ValueError if the text has a token of `disallowed_special` ("all": every one that is not allowed), or an
        image reference that does not fit a span of 256 or more ids.
        """
        text = unicodedata.normalize("NFC", text)
        every = self.tokenizer.special_tokens_set
        allowed = every if allowed_special == "all" else frozenset(allowed_special)
        if split_special_tokens:
            allowed = frozenset()
        self._refuse(text, every - allowed if disallowed_special == "all" else disallowed_special)
        ids, _ = self._encode_text(text, allowed, refuse_long=self.image_span_tokens >= IMAGE_SPAN_TOKENS)
        return [self.decoder[i] for i in ids]

    def _refuse(self, text: str, disallowed: Collection[str]) -> None:
        """Raise ValueError if text has one of the special tokens `disallowed`."""
        if not disallowed or "<" not in text:
            return
        found = [token for token in disallowed if token in text]
        if found:
            first = min(found, key=text.index)
            raise ValueError(
                f"disallowed special token {first!r} at character {text.index(first)} of the text; "
                "remove it, or pass it in allowed_special or disallowed_special=() where the method takes these"
            )

    def _encode_text(self, text: str, allowed: AbstractSet[str], *, refuse_long: bool) -> tuple[list[int], list[str]]:
        """Return (ids, image references) of NFC text, parsing the special tokens `allowed`."""
        encode = self.tokenizer.encode
        ids, references, position = [], [], 0
        while IMG_START in allowed and (start := text.find(IMG_START, position)) >= 0:
            end = text.find(IMG_END, start) if IMG_END in allowed else -1
            if end < 0:
                raise ValueError(f"unclosed <img> at character {start}: {text[start : start + 60]!r}; add </img>")
            reference = text[start + len(IMG_START) : end]
            if start > position:
                ids += encode(text[position:start], allowed_special=allowed, disallowed_special=())
            ids += self._image_span(reference, allowed, refuse_long=refuse_long)
            references.append(reference)
            position = end + len(IMG_END)
        if position < len(text):
            rest = text[position:] if position else text
            ids += encode(rest, allowed_special=allowed, disallowed_special=())
        return ids, references

    def _image_span(self, reference: str, allowed: Collection[str], *, refuse_long: bool) -> list[int]:
        """Return the image_span_tokens + 2 ids of <img>reference</img>: one for each byte, then padding."""
        if "<" in reference:
            inside = [tag for tag in allowed if tag in reference]
            if inside:
                first = min(inside, key=reference.index)
                raise ValueError(f"special token {first!r} inside <img>..</img>: {reference[:60]!r}; remove it")
        raw = _utf8(reference)
        if len(raw) > self.image_span_tokens:
            if refuse_long:
                raise ValueError(
                    f"image reference of {len(raw)} bytes, {self.image_span_tokens} fit: {reference[:60]!r}..; "
                    "use a shorter path, or pass the image as pixel_values"
                )
            raw = b""
        padding = [self.img_pad_id] * (self.image_span_tokens - len(raw))
        return [self.img_start_id, *raw, *padding, self.img_end_id]

    # ---- ids to text ----

    def _decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        errors: str | None = None,
        keep_image_special: bool = False,
        **kwargs: Any,
    ) -> str:
        """Return the text of ids. Image spans become <img>reference</img>; ids beyond the vocabulary are dropped.

        `skip_special_tokens` drops every special token; with `keep_image_special`, all but the ref, box and quad tags.
        A stray <img>, or a span without a reference, decodes as text. Raise ValueError for a negative id.
        """
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if ids and min(ids) < 0:
            raise ValueError(f"cannot decode the negative id {min(ids)}; remove ignored labels (-100) first")
        kept: Collection[int] = self.special_ids
        if skip_special_tokens:
            kept = self.image_special_tokens if keep_image_special else ()
        parts, position = [], 0
        for start, end, reference in self._image_spans(ids):
            parts += [self._bytes(ids[position : start + 1], kept), reference]
            position = end
        parts.append(self._bytes(ids[position:], kept))
        return b"".join(parts).decode("utf-8", errors=errors or self.errors)

    def _bytes(self, ids: list[int], kept: Collection[int]) -> bytes:
        """Return the bytes of ids, without the special tokens that are not in `kept`."""
        return self.tokenizer.decode_bytes([i for i in ids if i < self.eod_id or i in kept])

    def _image_spans(self, ids: list[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield (position of <img>, position of </img>, reference bytes) of every image span in ids."""
        start = _find(ids, self.img_start_id)
        while start >= 0:
            end = _find(ids, self.img_end_id, start)
            if end < 0:
                return
            padding = _find(ids[start:end], self.img_pad_id)
            full = end - start - 1 == self.image_span_tokens  # a reference that fills the span leaves no padding
            try:
                if padding < 0 and not full:
                    raise ValueError("neither padded nor full")
                reference = bytes(ids[start + 1 : end if padding < 0 else start + padding])
                reference.decode("utf-8")
            except ValueError:  # a model generated an id above 255, or bytes that are not text
                start = _find(ids, self.img_start_id, start + 1)
                continue
            yield start, end, reference
            start = _find(ids, self.img_start_id, end)


QWenTokenizer.register_for_auto_class("AutoTokenizer")
