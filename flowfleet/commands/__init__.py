"""Commands: the entry point of the three programs, and the commands that poller and worker share."""
