"""What a run says of itself: log, throughput, loggers, reports and records."""
