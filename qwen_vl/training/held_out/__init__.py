"""Answers of the model in training to held-out questions (--eval_generate)."""
