"""Shim: what runs in the flows' own Python: Python 3.9, the standard library, and nothing but this package."""
