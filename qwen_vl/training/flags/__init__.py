"""The flags of a training run: parsed and checked, without side effects."""
