"""From a conversation file to batches: conversations (read, check) -> chatml (ids, labels) -> dataset -> collator."""
