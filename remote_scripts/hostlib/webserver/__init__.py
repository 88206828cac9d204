"""lighttpd as it is seen from its own host: configuration, addresses, workers, answers, counters."""
