"""Prefect 3: the client of a Prefect 3 server or Prefect Cloud, over REST."""
