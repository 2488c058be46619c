"""API: one client for each of the two Prefect APIs, behind one Protocol."""

from flowfleet.api.client import ApiClient
from flowfleet.api.connect import Connector, connect
from flowfleet.api.prefect3.access import found_url

__all__ = ["ApiClient", "Connector", "connect", "found_url"]
