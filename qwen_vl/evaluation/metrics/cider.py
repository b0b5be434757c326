"""CIDEr-D: agreement of captions with reference captions in n-grams that are rare among all images of a data set."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from qwen_vl.evaluation.metrics.breakdown import answers_of, mean_of, means_by, text_of
from qwen_vl.evaluation.metrics.ptb import tokenize
from qwen_vl.evaluation.metrics.result import Metric, Pair, Result, SampleScore
from qwen_vl.evaluation.records import Record

MAX_N = 4
SIGMA = 6.0  # of the penalty for another length
DOMAINS = ("in", "near", "out")  # of NoCaps
FACTOR = 100  # of reported scores

Gram = tuple[str, ...]
Captions = Sequence[str] | Mapping[str, str]
References = Sequence[Sequence[str]] | Mapping[str, Sequence[str]]


class _Vector:
    """The weighted n-grams of one caption, with the norm for each n and the number of bigrams."""

    def __init__(self, counts: Counter[Gram], idf: Mapping[Gram, float], unknown: float) -> None:
        self.weights: list[dict[Gram, float]] = [{} for _ in range(MAX_N)]
        self.length = 0
        for gram, count in counts.items():
            self.weights[len(gram) - 1][gram] = count * idf.get(gram, unknown)
            if len(gram) == 2:
                self.length += count
        self.norms = [math.sqrt(sum(weight * weight for weight in weights.values())) for weights in self.weights]


def cider(
    predictions: Captions, references: References, *, corpus: Sequence[Sequence[str]] | None = None
) -> tuple[float, list[float]]:
    """Return the mean CIDEr-D of the images, and that of each, in the original tool's unit: 1.2 is reported as 120.

    Both arguments are lists in the same order, or mappings from the same ids, whose order in `predictions` counts.
    Captions are tokenized as by the original Java tool. corpus: the references of each image of the whole data set,
    whose document frequencies weight the words; by default those of `references`. Without it, the score of a subset
    cannot be compared with that of the whole, and one image alone scores 0.
    Raise ValueError if numbers or ids differ, if there is no image, or one has no reference.
    """
    said, accepted = _aligned(predictions, references)
    grams = [_grams_of_references(captions) for captions in accepted]
    whole = grams if corpus is None else [_grams_of_references(captions) for captions in corpus]
    return _cider([_grams(tokenize(caption)) for caption in said], grams, whole)


def _aligned(predictions: Captions, references: References) -> tuple[list[str], list[Sequence[str]]]:
    if isinstance(predictions, Mapping) != isinstance(references, Mapping):
        raise ValueError("predictions and references: give two lists in the same order, or two mappings from ids")
    names: Sequence[object] = range(len(predictions))
    if isinstance(predictions, Mapping) and isinstance(references, Mapping):
        if different := sorted(map(str, predictions.keys() ^ references.keys())):
            raise ValueError(f"ids that are not in both predictions and references: {', '.join(different[:5])}, ..")
        names = list(predictions)
        said, accepted = list(predictions.values()), [references[name] for name in predictions]
    else:
        said, accepted = list(predictions), list(references)  # type: ignore[arg-type]  # no mappings: seen above
    if len(said) != len(accepted):
        raise ValueError(f"{len(said)} predictions, but references of {len(accepted)} images; give one of each")
    if not said:
        raise ValueError("no captions to score; give at least one")
    for name, caption, captions in zip(names, said, accepted, strict=True):
        if not isinstance(caption, str):
            raise ValueError(f"prediction {name!r} is {caption!r}; give one string for each image")
        if isinstance(captions, str) or not captions:
            raise ValueError(f"references of {name!r} are {captions!r}; give a list of at least one")
    return said, accepted


def _grams_of_references(captions: Sequence[str]) -> list[Counter[Gram]]:
    following = [*captions[1:], "A"]
    return [_grams(tokenize(caption, after)) for caption, after in zip(captions, following, strict=True)]


def _grams(tokens: Sequence[str]) -> Counter[Gram]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))


def _cider(
    predictions: Sequence[Counter[Gram]],
    references: Sequence[Sequence[Counter[Gram]]],
    corpus: Sequence[Sequence[Counter[Gram]]],
) -> tuple[float, list[float]]:
    """Return the mean score and the score of each image, of n-gram counts."""
    frequency = Counter(gram for image in corpus for gram in set().union(*image))
    largest = math.log(len(corpus))  # of an n-gram that is in no reference
    idf = {gram: largest - math.log(images) for gram, images in frequency.items()}
    scores = []
    for prediction, image in zip(predictions, references, strict=True):
        vector = _Vector(prediction, idf, largest)
        total = math.fsum(_similarity(vector, _Vector(reference, idf, largest)) for reference in image)
        scores.append(10 * total / len(image))
    return math.fsum(scores) / len(scores), scores


def _similarity(prediction: _Vector, reference: _Vector) -> float:
    """Return the mean over n of the clipped cosine similarity, reduced for another length."""
    total = 0.0
    for n in range(MAX_N):
        wanted, norm = reference.weights[n], prediction.norms[n] * reference.norms[n]
        common = sum(
            min(weight, wanted[gram]) * wanted[gram] for gram, weight in prediction.weights[n].items() if gram in wanted
        )
        total += common / norm if norm else common
    return total / MAX_N * math.exp(-((prediction.length - reference.length) ** 2) / (2 * SIGMA**2))


def _score(pairs: Sequence[Pair], whole: Sequence[Record] | None = None) -> Result:
    whole = [pair.record for pair in pairs] if whole is None else whole
    texts, accepted = [text_of(pair) for pair in pairs], [answers_of(pair) for pair in pairs]
    corpus = None if len(whole) == len(pairs) else [record.answers for record in whole]
    scores = cider(texts, accepted, corpus=corpus)[1] if pairs else []
    samples = [
        SampleScore(pair.record.id, score, " ".join(tokenize(text)))
        for pair, score, text in zip(pairs, scores, texts, strict=True)
    ]
    points = [FACTOR * score for score in scores]
    figures = {"CIDEr": mean_of(pairs, points, "points")} | {
        name.replace("domain", "CIDEr"): figure
        for name, figure in means_by(pairs, points, "domain", first=DOMAINS, unit="points").items()
    }
    notes = (
        f"CIDEr: document frequencies are those of the references of all {len(whole)} images of the data files, also "
        "for subsets and domains. The standard error takes them as fixed.",
    )
    return Result("CIDEr", figures, samples, notes)


CAPTION_CIDER = Metric("CIDEr", _score, needs_whole=True)
