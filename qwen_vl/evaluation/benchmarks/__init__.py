"""The registry of benchmarks, as data."""
