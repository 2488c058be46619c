"""Transport: HTTP to a Prefect API, whichever it is: session, retry, and what an answer means."""
