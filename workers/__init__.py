"""Workers: take claimed runs from Redis, run them on their host, and report their ends to the API."""
