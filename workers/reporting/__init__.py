"""Reporting: what an ended run is said to be, to the ledger, the API and people."""
