"""Are two models the same: logits, answers, files."""
