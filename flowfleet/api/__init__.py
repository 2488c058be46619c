"""The API room: one client per Prefect API behind one Protocol."""

from flowfleet.api.client import ApiClient
from flowfleet.api.discovery import found_url
from flowfleet.api.door import Door, connect

__all__ = ["ApiClient", "Door", "connect", "found_url"]
