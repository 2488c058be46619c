"""State: what a worker knows of its runs, in memory and on its disk."""
