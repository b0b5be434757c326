"""The key of an answer: a digest of all that the answer depends on, and of nothing else, such as a path."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache

from qwen_vl.evaluation.answering import ModelIdentity
from qwen_vl.evaluation.records import Decoding, ImageSource, Parts, Prompt, Ranking, Record

# Raise it when the same Prompt is encoded into other ids, or a Decoding into other steps: older answers are void then.
PROMPT_VERSION = 1
READERS = 8  # threads that read and hash images


def digest(value: object) -> str:
    """Return the SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8")).hexdigest()


def answer_key(
    model: ModelIdentity,
    prompt: Prompt,
    decoding: Decoding | Ranking,
    *,
    num_options: int = 0,
    images: Mapping[str, str],
) -> str:
    """Return the key of the answer to `prompt`. images: {image name: digest of its bytes}.

    Names of images do not count, so moved files keep their answers.
    """
    ranking = num_options if isinstance(decoding, Ranking) else None
    settings = [_decoding_text(decoding), ranking]
    history = [[_parts(asked, images), said] for asked, said in prompt.history]
    asked = [prompt.style, prompt.system, history, _parts(prompt.parts, images)]
    return digest([PROMPT_VERSION, model.fingerprint, model.tokenizer, model.dtype, asked, settings])


@cache
def _decoding_text(decoding: Decoding | Ranking) -> str:
    """Return all settings of a decoding; the same one is used for many records."""
    return json.dumps([type(decoding).__name__, asdict(decoding)], sort_keys=True)


def _parts(parts: Parts, images: Mapping[str, str]) -> list[list[str]]:
    """Return texts and images of a prompt as values of JSON, an image as the digest of its bytes."""
    return [["text", part] if isinstance(part, str) else ["image", images[part.name]] for part in parts]


def image_digests(images: Sequence[ImageSource]) -> dict[str, str | None]:
    """Return {name: digest of the encoded bytes} of images, None for one that cannot be read."""

    def digest_of(image: ImageSource) -> str | None:
        try:
            return image.digest()
        except (OSError, ValueError):
            return None

    with ThreadPoolExecutor(READERS) as pool:  # reading and hashing release the interpreter
        return dict(zip([image.name for image in images], pool.map(digest_of, images), strict=True))


def records_digest(records: Sequence[Record]) -> str:
    """Return a digest of the records' ids, questions, options, accepted answers and image names, in their order."""
    return digest([[r.id, r.question, r.options, r.answers, len(r.images)] for r in records])
