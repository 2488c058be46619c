"""Monitor: what reads the ledger and tells people about it; the monitor never writes."""
