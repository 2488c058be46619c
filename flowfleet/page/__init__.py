"""Page: the HTTP page of a poller or worker."""
