"""Comparison of two models: logits, answers, files."""
