"""Other formats to conversation files, and back."""
