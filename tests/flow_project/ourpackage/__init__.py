"""A package that comes with the flow, and is installed nowhere."""
