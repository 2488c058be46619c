"""Imported when the flow is at work."""
