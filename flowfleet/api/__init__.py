"""The API room: one client per Prefect API behind one Protocol."""

from flowfleet.api.client import ApiClient
from flowfleet.api.discovery import connect, found_url

__all__ = ["ApiClient", "connect", "found_url"]
