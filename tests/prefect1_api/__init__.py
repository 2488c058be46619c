"""The local Prefect 1 API: GraphQL over loopback HTTP on SQLite, with the real server's rules and faults."""

from tests.prefect1_api.api import Prefect1Api, Request
from tests.prefect1_api.faults import Faults

__all__ = ["Faults", "Prefect1Api", "Request"]
