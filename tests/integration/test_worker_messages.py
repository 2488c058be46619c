"""Messages that are broken, or come again: each is refused and acknowledged, and the worker lives on."""

import json
import time

from flowfleet import broker
from flowfleet.broker import Publisher, key_prefix, make_app, queue_key
from tests.broken_messages import broken
from tests.waiting import until
from tests.worker_world import command


def test_the_worker_lives_through_every_kind_and_its_prefetch_is_whole(world, service, valkey, caplog):
    fleet, key = world.ledger.fleet, queue_key(world.ledger.fleet, world.route)
    messages = [world.claim(world.create(command(world.holding(5)))) for _ in range(2)]
    with valkey.client() as client:
        # a good one, from a queue that the worker does not read
        Publisher(make_app(valkey.tcp_url, fleet=f"{fleet}-apart")).publish(messages[0])
        kinds = broken(client.rpop(queue_key(f"{fleet}-apart", world.route)))
        for number, (kind, item) in enumerate(kinds.items(), start=1):
            client.lpush(key, item)
            until(
                lambda number=number: world.ledger.ledger.store.counts().get("messages-refused") == number,
                10,
                f"the message ({kind}) to be refused and counted",
            )
        until(lambda: client.llen(key) == 0, 5, "the queue to be empty")
        assert client.hlen(key_prefix(fleet) + "unacked") == 0
        assert client.zcard(key_prefix(fleet) + "unacked_index") == 0
        assert world.code is None, "the worker lives"
        assert f"\nflowfleet_messages_refused_total {len(kinds)}.0\n" in service.metrics.page().decode()
        assert "rm -rf" not in caplog.text
        for message in messages:
            world.publisher.publish(message)
        for message in messages:
            world.wait_state(message, "running")  # both at once: not one slot is gone
        assert client.hlen(key_prefix(fleet) + "unacked") == 0
    for message in messages:
        world.end(message, 5)
    assert world.stop() == 0


def test_a_message_that_a_killed_worker_had_fetched_comes_back_and_is_begun_once(world, valkey, monkeypatch):
    monkeypatch.setattr(broker, "VISIBILITY_SECONDS", 1)
    monkeypatch.setattr(broker, "RESTORE_SECONDS", 1)
    fleet, route = world.ledger.fleet, str(world.route)
    unacked, index = (f"{key_prefix(fleet)}{name}" for name in ("unacked", "unacked_index"))
    world.start()
    message = world.claim(world.create(command(world.holding(5))))
    with valkey.client() as client:
        Publisher(make_app(valkey.tcp_url, fleet=f"{fleet}-apart")).publish(message)
        item = json.loads(client.rpop(queue_key(f"{fleet}-apart", world.route)))

        def fetched_by_one_that_was_killed(tag):
            client.hset(unacked, tag, json.dumps([item, route, route]))
            client.zadd(index, {tag: time.time() - 2})

        fetched_by_one_that_was_killed("before")
        world.wait_state(message, "running")
        fetched_by_one_that_was_killed("when it has begun")
        until(lambda: not client.zcard(index) and not client.hlen(unacked), 10, "none to be left")
        until(lambda: client.llen(queue_key(fleet, world.route)) == 0, 5, "the queue to be empty")
    world.end(message, 5)
    assert world.api.history(message.run_id).count("Launching") == 1
    assert world.stop() == 0
