"""The decoder of a checkpoint in 4 bits."""
