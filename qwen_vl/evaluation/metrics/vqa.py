"""VQA accuracy: how many of the (ten) annotators gave the predicted answer, each of them left out once."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from qwen_vl.evaluation.metrics.breakdown import answers_of, mean_of, means_by, text_of
from qwen_vl.evaluation.metrics.result import Metric, Pair, Result, SampleScore

Variant = Literal["official", "published"]

SIGNS = ';/[]"{}()=+\\_-><@`,?!'
SIGN = re.compile(f"[{re.escape(SIGNS)}]")
BESIDE_SPACE = re.compile(rf"(?=([{re.escape(SIGNS)}]) )|(?<= )([{re.escape(SIGNS)}])")
DIGITS_WITH_COMMA = re.compile(r"\d,\d")
FINAL_STOP = re.compile(r"\.(?!\d)")
MAX_STOPS = 32  # only so many full stops are deleted: a slip of the first tool, kept by all of them

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = {"a", "an", "the"}

ONE_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
TWO_APOSTROPHES = """
couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""


def _contractions() -> dict[str, str]:
    """Return what replaces a word. Keys with a capital are never met, because words are compared in lower case."""
    table = {value.replace("'", ""): value for value in ONE_APOSTROPHE.split()}
    for value in TWO_APOSTROPHES.split():
        start, middle, end = value.split("'")
        table |= {f"{start}{middle}'{end}": value, f"{start}'{middle}{end}": value}
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return table | {"somebody'd": "somebodyd", "let's": "let's", "she's": "she's"}


CONTRACTIONS = _contractions()


def vqa_normalize_punctuation(text: str) -> str:
    """Return a text without the signs that VQA accuracy ignores, and without full stops but in numbers.

    A sign next to a space anywhere, and every sign if digits are joined by a comma anywhere, is deleted, and becomes a
    space otherwise.
    """
    found = set(SIGN.findall(text))
    if found:
        if DIGITS_WITH_COMMA.search(text):
            deleted = found
        else:
            deleted = {sign for pair in BESIDE_SPACE.findall(text) for sign in pair}
        text = text.translate({ord(sign): "" if sign in deleted else " " for sign in found})
    return FINAL_STOP.sub("", text, count=MAX_STOPS) if "." in text else text


def vqa_normalize_words(text: str) -> str:
    """Return the lower-case words of a text without articles, with numbers up to ten as digits, and apostrophes."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: Variant = "official") -> float:
    """Return the VQA accuracy of one prediction, 0 to 1: 0, .3, .6, .9, 1 if 0 .. 4 of ten answers equal it.

    "official" is the current tool of the benchmark's authors: prediction and answers are normalized alike.
    "published" is what the model's published numbers were made with: the answers keep case, articles and number words.
    Raise ValueError for another variant and for no answers.
    """
    return _share(*_normalized(prediction, answers, variant))


def _share(prediction: str, answers: Sequence[str]) -> float:
    same, count = list(answers).count(prediction), len(answers)
    return (same * min(1.0, (same - 1) / 3) + (count - same) * min(1.0, same / 3)) / count


def _normalized(prediction: str, answers: Sequence[str], variant: Variant) -> tuple[str, Sequence[str]]:
    """Return the texts that are compared."""
    if isinstance(answers, str) or not answers:
        raise ValueError(f"accepted answers are {answers!r}; give a list of at least one")
    if variant == "official":
        prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
        if len(set(answers)) > 1:
            changed = {answer: _both(answer) for answer in {prediction, *answers}}
            return changed[prediction], [changed[answer] for answer in answers]
        return prediction, answers
    if variant == "published":
        if len(set(answers)) > 1:
            signs = {answer: vqa_normalize_punctuation(answer) for answer in set(answers)}
            answers = [signs[answer] for answer in answers]
        return _both(_one_line(prediction)), answers
    raise ValueError(f"variant {variant!r} of VQA accuracy; use 'official' or 'published'")


@lru_cache(maxsize=1 << 16)  # most answers are a few words such as "yes"
def _both(text: str) -> str:
    return vqa_normalize_words(vqa_normalize_punctuation(text))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _score(pairs: Sequence[Pair]) -> Result:
    samples, published = [], []
    for pair in pairs:
        text, answers = text_of(pair), answers_of(pair)
        scored, accepted = _normalized(text, answers, "official")
        published.append(vqa_accuracy(text, answers, "published"))
        extra = {"published": published[-1]}
        samples.append(SampleScore(pair.record.id, _share(scored, accepted), scored, extra=extra))
    scores = [sample.score for sample in samples]
    figures = {"accuracy": mean_of(pairs, scores), "accuracy as published": mean_of(pairs, published)}
    figures |= means_by(pairs, scores, "question_type") | means_by(pairs, scores, "answer_type")
    return Result("accuracy", figures, samples)


VQA_ACCURACY = Metric("VQA accuracy", _score)
