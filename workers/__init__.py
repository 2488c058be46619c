"""workers: from Redis to the child and back to the API."""
