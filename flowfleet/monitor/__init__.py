"""The monitor: reads the ledger and tells people; it never writes."""
