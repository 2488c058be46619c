"""Imported by children."""
