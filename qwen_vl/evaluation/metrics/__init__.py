"""Metrics: pure functions from predictions and accepted answers to scores."""

from .anls import anls
from .boxes_and_words import box_accuracy, find_boxes, iou, share_that_agree
from .cider import cider
from .text import exact_match, gqa_answer, relaxed_accuracy
from .vqa import vqa_accuracy, vqa_normalize_punctuation, vqa_normalize_words

__all__ = [
    "anls",
    "box_accuracy",
    "cider",
    "exact_match",
    "find_boxes",
    "gqa_answer",
    "iou",
    "relaxed_accuracy",
    "share_that_agree",
    "vqa_accuracy",
    "vqa_normalize_punctuation",
    "vqa_normalize_words",
]
