"""Broker: a message goes through Celery to the Redis that the ledger uses, also where that wants a password."""

import json
import uuid

import pytest

from flowfleet.broker import Publisher, make_app, queue_key
from flowfleet.errors import LedgerUnavailable
from flowfleet.flow_run import Message
from flowfleet.ledger import connect
from flowfleet.ledger.login import Login
from tests.ledger_world import route


def message() -> Message:
    return Message(run_id=str(uuid.uuid4()), claim=str(uuid.uuid4()), route=route())


@pytest.mark.parametrize("way", ["tcp_url", "socket_url"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_message_reaches_the_queue_beside_the_ledger_with_a_password(locked, way, apart):
    """The password stands in the address, or was given apart from it."""
    url = plain = getattr(locked, way)
    if apart:
        login, _, place = url.rpartition("@")
        plain = login.partition("://")[0] + "://" + place
    fleet = f"f{uuid.uuid4().hex[:8]}"
    sent = message()
    Publisher(make_app(plain, fleet=fleet, login=Login(lambda: url) if apart else None)).publish(sent)

    ledger = connect(url, fleet)
    (raw,) = ledger.store.client.lrange(queue_key(fleet, sent.route), 0, -1)
    assert json.loads(raw)["headers"]["id"] == sent.task_id
    ledger.close()


def test_a_refused_password_is_said_without_it(locked):
    app = make_app(f"redis://:wrong-secret@127.0.0.1:{locked.port}/0", fleet="x")
    with pytest.raises(LedgerUnavailable) as caught:
        Publisher(app).publish(message())
    assert "wrong-secret" not in str(caught.value)
