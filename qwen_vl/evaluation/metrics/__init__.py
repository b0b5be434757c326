"""Metrics: pure functions from predictions and accepted answers to scores."""

from .boxes_and_words import box_accuracy, exact_match, find_boxes, iou

__all__ = ["box_accuracy", "exact_match", "find_boxes", "iou"]
