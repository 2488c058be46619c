"""Prefect 1: the client of Prefect Server and of the Cloud of that time, over GraphQL."""
