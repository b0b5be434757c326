"""Monitoring of a run: log, throughput, loggers, reports and records."""
