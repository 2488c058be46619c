"""Reporting: what the ledger, the API and people are told about an ended run."""
