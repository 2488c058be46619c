"""Up: everything on one machine: Redis, a Prefect 3 server, a poller and workers, as children of one command."""
