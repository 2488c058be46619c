"""API: what poller and workers ask of a Prefect API, one client for each of the two behind one Protocol."""
