"""Every problem of conversation files, by record and field."""
