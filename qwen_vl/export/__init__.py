"""Trained models as standalone model folders: exported, merged, quantized, compared."""
