"""Commands: how the three programs are entered, and the commands that both halves share."""
