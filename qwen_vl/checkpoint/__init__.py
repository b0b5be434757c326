"""Model folders: opening, loading, tensors by name, the Int4 layout, and staged writing."""
