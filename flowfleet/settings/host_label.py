"""Host label: the label by which flows find the host on which their files lie."""

import socket

#: the name that Docker Desktop gives to every host, so it identifies none
_DOCKER_DESKTOP = "docker-desktop"


def label_of_host(name: str) -> str:
    """The label of the host with this name: the name, but its IP where every host has the same (as prefect 1.4.1)."""
    if name != _DOCKER_DESKTOP:
        return name
    try:
        return socket.gethostbyname(name)
    except OSError:  # a label that several hosts have is better than no worker
        return name
