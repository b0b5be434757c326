"""Metrics: pure functions from predictions and accepted answers to scores."""

from .anls import anls
from .box_matching import first_box_share
from .boxes_and_words import box_accuracy, find_boxes, iou, share_that_agree
from .cider import cider
from .grounding import grounding_iou
from .letters import option_letter
from .mmbench import mmbench_scores
from .mme import mme_scores
from .own_data import score_sample, task_of
from .own_tasks import short_agree
from .text import exact_match, gqa_answer, relaxed_accuracy
from .vqa import vqa_accuracy, vqa_normalize_punctuation, vqa_normalize_words

__all__ = [
    "anls",
    "box_accuracy",
    "cider",
    "exact_match",
    "find_boxes",
    "first_box_share",
    "gqa_answer",
    "grounding_iou",
    "iou",
    "mmbench_scores",
    "mme_scores",
    "option_letter",
    "relaxed_accuracy",
    "score_sample",
    "share_that_agree",
    "short_agree",
    "task_of",
    "vqa_accuracy",
    "vqa_normalize_punctuation",
    "vqa_normalize_words",
]
