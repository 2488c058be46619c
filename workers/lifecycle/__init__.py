"""Lifecycle: how a worker signs on, renews its claims, fetches messages, and ends."""
