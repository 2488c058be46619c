"""The API room: one client per Prefect API behind one Protocol."""

from flowfleet.api.client import ApiClient
from flowfleet.api.connect import Door, connect
from flowfleet.api.prefect3.access import found_url

__all__ = ["ApiClient", "Door", "connect", "found_url"]
