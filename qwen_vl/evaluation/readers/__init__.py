"""Readers: from the files of a benchmark to its records."""
