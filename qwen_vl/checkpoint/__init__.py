"""What a model folder is: its configuration, its tensors by name, loading, and writing without half-written files."""
