"""Agents: the classes of Prefect 1's own agents, as thin wrappers of a poller and a worker of flowfleet."""

from flowfleet.agents.agent import Agent
from flowfleet.agents.docker_agent import DockerAgent
from flowfleet.agents.local import LocalAgent

__all__ = ["Agent", "DockerAgent", "LocalAgent"]
