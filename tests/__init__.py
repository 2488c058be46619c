"""The tests of flowfleet."""
