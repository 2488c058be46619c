"""Deployers: the ways to start a run, one file each."""
