"""Long answers against references: CIDEr, ROUGE-L (rouge-score) and BLEU (sacrebleu).

BLEU and ROUGE-L see the tokens of sacrebleu's tokenizer "zh": Western words and signs as the usual "13a" has them, and
every Chinese character by itself. CIDEr sees its own tokens, Chinese characters set apart before.
"""

import functools
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from qwen_vl.evaluation.metrics.cider import FACTOR, cider

CHINESE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")  # and Japanese syllables
LONG = 10  # words; a longer answer is free text


class TextScores(NamedTuple):
    """What a set of answers got: BLEU of the set, 0 to 100, and 100 times the CIDEr of each answer."""

    bleu: float
    signature: str  # of sacrebleu, with all of its settings
    ciders: list[float]


def require_libraries() -> None:
    """Raise ValueError if the libraries that score free text are not installed."""
    missing = [name for name in ("rouge_score", "sacrebleu") if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ValueError(f"BLEU and ROUGE-L of free-text answers need {names}: pip install 'qwen-vl[eval]'")


def is_long(text: str) -> bool:
    """Return whether a text has more than 10 words; two Chinese characters count as one."""
    characters = len(CHINESE.findall(text))
    return len(CHINESE.sub(" ", text).split()) + characters / 2 > LONG


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the F1 of the longest common subsequence of tokens, 0 to 1, with the best of the references; case apart.

    Raise ValueError if rouge-score or sacrebleu is not installed.
    """
    return float(_rouge_scorer().score_multi(list(references), prediction)["rougeL"].fmeasure)


def score_texts(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, corpus: Sequence[Sequence[str]] | None = None
) -> TextScores:
    """Return BLEU and CIDEr of answers, each with one or more references; corpus: as for `cider`.

    Raise ValueError as `rouge_l` does.
    """
    require_libraries()
    from sacrebleu.metrics import BLEU

    most = max(len(texts) for texts in references)
    streams: list[list[Any]] = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    measure = BLEU(tokenize="zh")
    bleu = measure.corpus_score(list(predictions), streams).score
    whole = None if corpus is None else [[_apart(text) for text in texts] for texts in corpus]
    accepted = [[_apart(text) for text in texts] for texts in references]
    _, scores = cider([_apart(text) for text in predictions], accepted, corpus=whole)
    return TextScores(bleu, str(measure.get_signature()), [FACTOR * score for score in scores])


def _apart(text: str) -> str:
    return CHINESE.sub(lambda match: f" {match[0]} ", text)


class _Tokens:
    """The tokenizer object that rouge-score asks for."""

    def __init__(self, split: Callable[[str], str]) -> None:
        self.split = split

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, lower-cased."""
        return self.split(text.lower()).split()


@functools.cache
def _rouge_scorer() -> Any:
    require_libraries()
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    return RougeScorer(["rougeL"], tokenizer=_Tokens(TokenizerZh()))
