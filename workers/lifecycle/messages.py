"""Messages: the check of what lies in a queue, before Celery parses it."""

import json
from collections.abc import Mapping
from typing import Any

from flowfleet.errors import BadMessage
from flowfleet.flow_run import MESSAGE_LIMIT, TASK_NAME, Message


def check_message(headers: Any, body: Any, content_type: Any, content_encoding: Any) -> Message:
    """Check a message and return its content; raises `BadMessage` unless it is of the one kind that workers take."""
    if not isinstance(headers, Mapping) or headers.get("task") != TASK_NAME:
        raise BadMessage("not a message for this task")
    if content_type != "application/json" or str(content_encoding).lower() != "utf-8":
        raise BadMessage("not JSON in UTF-8")
    if not isinstance(body, str | bytes) or len(body) > MESSAGE_LIMIT:
        raise BadMessage(f"a body has at most {MESSAGE_LIMIT} bytes")
    if any(headers.get(name) is not None for name in ("eta", "expires", "group")):
        raise BadMessage("a message has neither eta nor expiry")
    if headers.get("timelimit") not in (None, [None, None]):
        raise BadMessage("a message has no time limit")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise BadMessage("a body that is not JSON") from exc
    if not isinstance(content, list) or len(content) != 3 or content[0] not in ([], None):
        raise BadMessage("a body is a list of no arguments, keyword arguments and options")
    kwargs, embed = content[1], content[2]
    if not isinstance(kwargs, dict) or not isinstance(embed, dict) or any(embed.values()):
        raise BadMessage("a body carries keyword arguments and no callbacks")
    message = Message.from_kwargs(kwargs)
    if headers.get("id") != message.task_id:
        raise BadMessage("the task id does not belong to the run and claim")
    return message
