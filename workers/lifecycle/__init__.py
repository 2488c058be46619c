"""Lifecycle: how a worker signs on, renews, fetches messages, and ends."""
