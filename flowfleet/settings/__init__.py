"""Settings: which options exist, and how their values are found and read."""
