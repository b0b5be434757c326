"""Pages that show conversations as they are trained on, token by token."""
