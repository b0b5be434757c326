"""The path from a conversation file to batches: conversations (read, check) -> chatml (encode) -> dataset, collator."""
