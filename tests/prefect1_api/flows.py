"""Flows: projects, flow groups, versions, tasks and edges, as registration makes them."""

import base64
import gzip
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tests.prefect1_api.errors import Refusal
from tests.prefect1_api.store import Row, Store

#: what a flow group says of its flows; the engine needs an object here, never null [run]
SETTINGS = {"heartbeat_enabled": True, "lazarus_enabled": True, "version_locking_enabled": False}

_MICROSECONDS = 1_000_000
#: of a task
_SWITCHES = ("mapped", "auto_generated", "is_reference_task", "is_root_task", "is_terminal_task")


def unpacked(text: str) -> dict[str, Any]:
    """base64(gzip(json)), as the client sends a flow [run]."""
    try:
        flow = json.loads(gzip.decompress(base64.b64decode(text)))
    except (ValueError, OSError) as error:
        raise Refusal(f"the serialized flow cannot be read: {error}") from error
    if not isinstance(flow, dict):
        raise Refusal("the serialized flow is no object")
    return flow


class Flows:
    """What a client registers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create_project(self, name: str, tenant_id: str, description: str | None = None) -> str:
        if self._store.where("project", name=name, tenant_id=tenant_id):
            # this text makes the client look the project up instead [src]
            raise Refusal("'Uniqueness violation.' There is a project of this name.")
        return self._store.insert("project", name=name, tenant_id=tenant_id, description=description)

    def create(self, project_id: str, flow: Mapping[str, Any], given: Mapping[str, Any]) -> str:
        """One version more of the flow of this name; the same key as the newest version's makes no new one.

        `given` as in create_flow.
        """
        project = self._store.get("project", project_id)
        if project is None:
            raise Refusal(f"no project {project_id}")
        group = self._group(project, flow["name"])
        older = self._store.where("flow", flow_group_id=group)
        key = given.get("idempotency_key")
        if key and older and older[-1]["idempotency_key"] == key:
            return str(older[-1]["id"])
        for each in older:
            self._store.update("flow", each["id"], archived=True)
        version_group = older[-1]["version_group_id"] if older else str(uuid.uuid4())
        told = {name: flow.get(name) for name in ("name", "environment", "run_config", "schedule", "storage")}
        flow_id = self._store.insert(
            "flow",
            tenant_id=project["tenant_id"],
            project_id=project_id,
            flow_group_id=group,
            version=len(older) + 1,
            version_group_id=given.get("version_group_id") or version_group,
            archived=False,
            core_version=flow.get("__version__"),
            description=given.get("description"),
            parameters=flow.get("parameters") or [],
            is_schedule_active=bool(given.get("set_schedule_active", True)),
            serialized_flow=dict(flow),
            settings=SETTINGS,
            idempotency_key=key,
            **told,
        )
        # a flow comes with its tasks inside, or they follow by register_tasks and register_edges [run]
        self.add_tasks(flow_id, flow.get("tasks") or [])
        self.add_edges(flow_id, flow.get("edges") or [])
        return flow_id

    def _group(self, project: Row, name: str) -> str:
        found = self._store.where("flow_group", project_id=project["id"], name=name)
        if found:
            return str(found[0]["id"])
        whose = {"tenant_id": project["tenant_id"], "project_id": project["id"]}
        return self._store.insert("flow_group", **whose, name=name, settings=SETTINGS, default_parameters={})

    def add_tasks(self, flow_id: str, tasks: Sequence[Mapping[str, Any]]) -> None:
        flow = self.get(flow_id)
        known = {task["slug"] for task in self._store.where("task", flow_id=flow_id)}
        for task in tasks:
            if task["slug"] in known:
                continue
            delay = task.get("retry_delay")
            self._store.insert(
                "task",
                tenant_id=flow["tenant_id"],
                flow_id=flow_id,
                name=task.get("name") or task["slug"],
                max_retries=task.get("max_retries") or 0,
                retry_delay=None if delay is None else delay // _MICROSECONDS,
                trigger=(task.get("trigger") or {}).get("fn"),
                tags=list(task.get("tags") or []),
                **{name: task.get(name) for name in ("slug", "type", "cache_key")},
                **{name: bool(task.get(name)) for name in _SWITCHES},
            )

    def add_edges(self, flow_id: str, edges: Sequence[Mapping[str, Any]]) -> None:
        flow = self.get(flow_id)
        ids = {task["slug"]: task["id"] for task in self._store.where("task", flow_id=flow_id)}
        for edge in edges:
            ends = {f"{end}_task_id": ids[edge[f"{end}_task"]["slug"]] for end in ("upstream", "downstream")}
            what = {"key": edge.get("key"), "mapped": bool(edge.get("mapped"))}
            self._store.insert("edge", tenant_id=flow["tenant_id"], flow_id=flow_id, **ends, **what)

    def get(self, flow_id: str) -> Row:
        flow = self._store.get("flow", flow_id)
        if flow is None:
            raise Refusal(f"no flow {flow_id}")
        return flow

    def newest(self, version_group_id: str) -> str:
        """The version of the group that is not archived."""
        found = self._store.where("flow", version_group_id=version_group_id, archived=False)
        if not found:
            raise Refusal(f"no flow with the version group {version_group_id}")
        return str(found[-1]["id"])
