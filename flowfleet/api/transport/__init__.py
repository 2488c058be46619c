"""Transport: HTTP to a Prefect API, whichever it is: session, retry, and the meaning of responses."""
