"""Features of images that a frozen vision tower computes once."""
