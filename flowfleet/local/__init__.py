"""Local: child processes of this machine, their data folder, and a Redis among them."""
