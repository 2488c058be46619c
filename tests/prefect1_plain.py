"""Prefect1Plain: asks the local Prefect 1 API by plain requests, as no client of ours or of Prefect's does."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import requests


class Prefect1Plain:
    """`ask` gives data, or an AssertionError with the errors; `answer` gives the whole body."""

    def __init__(self, url: str, agent_id: str = "") -> None:
        self.url = url
        self.headers = {"X-PREFECT-CORE-VERSION": "1.4.1"} | ({"X-PREFECT-AGENT-ID": agent_id} if agent_id else {})

    def post(self, query: str, variables: Any = None, *, timeout: float = 10) -> requests.Response:
        return requests.post(
            self.url, json={"query": query, "variables": variables}, headers=self.headers, timeout=timeout
        )

    def answer(self, query: str, variables: Any = None) -> dict[str, Any]:
        return dict(self.post(query, variables).json())

    def ask(self, query: str, variables: Any = None) -> dict[str, Any]:
        answer = self.answer(query, variables)
        assert "errors" not in answer, answer["errors"]
        return dict(answer["data"])

    def mutation(self, name: str, selection: str, /, **given: Any) -> dict[str, Any]:
        """The whole answer to one mutation with an input."""
        text = f"mutation($input: {name}_input!) {{ {name}(input: $input) {{ {selection} }} }}"
        return self.answer(text, json.dumps({"input": given}))

    def done(self, name: str, selection: str, /, **given: Any) -> Any:
        """The payload of one mutation that must succeed."""
        answer = self.mutation(name, selection, **given)
        assert "errors" not in answer, answer["errors"]
        return answer["data"][name]

    def queue(self, tenant: str, labels: Sequence[str] = (), before: str = "2100-01-01") -> list[str]:
        given = {"tenant_id": tenant, "labels": list(labels), "before": before}
        return list(self.done("get_runs_in_queue", "flow_run_ids", **given)["flow_run_ids"])

    def set_states(self, *states: tuple[str, str, int | None]) -> dict[str, Any]:
        """One list of (run, type, version); the whole answer."""
        return self.mutation("set_flow_run_states", "states { id status message }", states=listed(states))

    def set_by_alias(self, *states: tuple[str, str, int | None]) -> dict[str, Any]:
        """The same, with a field of its own for each: r0, r1, …"""
        declared = ", ".join(f"$i{n}: set_flow_run_states_input!" for n in range(len(states)))
        fields = " ".join(
            f"r{n}: set_flow_run_states(input: $i{n}) {{ states {{ id status }} }}" for n in range(len(states))
        )
        variables = {f"i{n}": {"states": [state]} for n, state in enumerate(listed(states))}
        return self.answer(f"mutation({declared}) {{ {fields} }}", variables)


def listed(states: Sequence[tuple[str, str, int | None]]) -> list[Mapping[str, Any]]:
    return [{"flow_run_id": run, "version": version, "state": {"type": kind}} for run, kind, version in states]
