"""Trained models as standalone checkpoints: merged, quantised, compared. Importing training first quiets libraries."""

import qwen_vl.training  # noqa: F401
