"""Runs: from a message to a started run, and what is done with it until it has ended."""
