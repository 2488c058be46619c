"""Store, messages and hints: addresses, what cannot be used, outages, counters, and "look now" over pub/sub."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
import redis

from flowfleet.broker import Publisher, make_app, queue_key
from flowfleet.errors import LedgerUnavailable, LedgerUnusable, LoginRefused
from flowfleet.flow_run import Message
from flowfleet.ledger import connect
from flowfleet.ledger.claims import State
from flowfleet.ledger.login import Login
from flowfleet.ledger.store import redacted
from flowfleet.monitor.redis_server import RedisServer
from tests.ledger_world import LedgerWorld, held, route, row
from tests.valkey import Valkey, free_port
from tests.waiting import until


@pytest.fixture(scope="module")
def locked() -> Iterator[Valkey]:
    """A server with a password of which an address can hold nothing as it is."""
    with Valkey.private(tcp=True, password="p@ss:w/örd %#?") as server:
        yield server


def test_port_and_socket_lead_to_the_same_ledger_with_a_password(locked):
    by_port, by_socket = connect(locked.tcp_url, "x"), connect(locked.socket_url + "?virtual_host=0", "x")
    by_port.store.count("seen")
    by_port.store.count("seen", 2)

    assert by_socket.store.counts() == {"seen": 3}
    assert by_port.check() == by_socket.check()
    by_port.close()
    by_socket.close()


@pytest.mark.parametrize("login", ["", ":wrong-secret@", "nobody:wrong-secret@"])
def test_a_refused_password_is_not_waited_for_and_is_not_told(locked, login):
    ledger = connect(f"redis://{login}127.0.0.1:{locked.port}/0", "x")
    for ask in (ledger.check, ledger.gate.is_open, lambda: ledger.hints.publish("poke")):
        with pytest.raises(LedgerUnusable, match="refuses our password") as caught:
            ask()
        assert "wrong-secret" not in str(caught.value)
        assert f"127.0.0.1:{locked.port}" in str(caught.value)


def test_a_user_that_may_not_run_scripts_is_told_so(locked):
    with locked.client() as client:
        client.acl_setuser("weak", enabled=True, passwords=["+pw"], commands=["+get", "+ping"], keys=["*"])
    ledger = connect(f"redis://weak:pw@127.0.0.1:{locked.port}/0", "x")

    with pytest.raises(LedgerUnusable, match=r"does not let our user run the command .*; give it \+\w+"):
        ledger.gate.is_open()


@pytest.mark.parametrize("kept", ["keys", "channels"])
def test_a_user_that_may_not_use_the_keys_or_channels_of_the_fleet_is_told_so(locked, kept):
    patterns = {"keys": ["flowfleet:*"], "channels": ["flowfleet:*"], kept: ["other:*"]}
    with locked.client() as client:
        client.acl_setuser("walled", enabled=True, passwords=["+pw"], commands=["+@all"], reset=True, **patterns)
    ledger = connect(f"redis://walled:pw@127.0.0.1:{locked.port}/0", "x")
    name = ledger.store.key("hints")
    right = {"keys": r"~flowfleet:\*", "channels": r"&flowfleet:\*"}[kept]
    with pytest.raises(LedgerUnusable, match=f"does not let our user use .*; give it {right}, as in the ACL line"):
        ledger.store.ask(lambda client: client.publish(name, "x") + client.exists(name))


def test_a_database_that_there_is_not_is_refused_with_the_number_in_its_address(locked):
    ledger = connect(f"{locked.tcp_url.rpartition('/')[0]}/99", "x")
    with pytest.raises(
        LedgerUnusable, match=r"/99 has no such database .*out of range.*; correct its number in FLOWFLEET_REDIS"
    ):
        ledger.check()


@pytest.mark.parametrize(
    "address",
    ["redis://h/s3cret", "redis://h/-1", "redis+socket:///s?virtual_host=s3cret", "redis+sentinel://h:1/main/s3cret"],
)
def test_a_database_that_is_no_number_is_refused_and_may_be_a_part_of_a_password(address):
    with pytest.raises(
        LedgerUnusable, match="names a database that is no number: use redis://HOST:PORT/DB, and"
    ) as told:
        connect(address, "x")
    assert "s3cret" not in str(told.value)


def test_rights_that_are_taken_later_are_waited_for_and_the_settings_may_stay_hidden(locked):
    with locked.client() as client:
        client.acl_setuser("strong", enabled=True, passwords=["+pw"], commands=["+@all", "-config"], keys=["*"])
        ledger = connect(f"redis://strong:pw@127.0.0.1:{locked.port}/0", "x")
        assert not ledger.gate.is_open()
        assert not ledger.check().persistent
        client.execute_command("ACL", "SETUSER", "strong", "-@all", "+auth", "+info")
        for ask in (ledger.gate.is_open, lambda: ledger.hints.publish("poke")):
            with pytest.raises(LoginRefused, match="does not let our user run the command "):
                ask()
        assert RedisServer(ledger.store).config("appendonly") is None
        client.execute_command("ACL", "SETUSER", "strong", "+@all")
        assert not ledger.gate.is_open()


def test_a_replica_is_refused_and_its_refused_writes_are_waited_for(valkey):
    with Valkey.private(tcp=True, config=["--replicaof", "127.0.0.1", str(valkey.port)]) as server:
        ledger = connect(server.url, "x")
        with pytest.raises(LedgerUnusable, match="is a replica"):
            ledger.check()
        with pytest.raises(LedgerUnavailable):
            ledger.roster.know([route()])


class OldServer:
    """Answers every command as a Redis of 2018 would answer INFO."""

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _serve(self):
        body = b"redis_version:4.0.9\r\nredis_mode:standalone\r\n"
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer:
                while data := peer.recv(4096):
                    commands = data.count(b"*")
                    info = b"$%d\r\n%s\r\n" % (len(body), body)
                    peer.sendall(info if b"INFO" in data else b"+OK\r\n" * commands)


def test_a_server_that_is_too_old_is_refused_with_its_version():
    with OldServer() as server, pytest.raises(LedgerUnusable, match=r"has version 4\.0\.9; flowfleet needs Redis 6\.2"):
        connect(f"redis://127.0.0.1:{server.port}/0", "x").check()


def test_check_tells_what_doctor_needs():
    with Valkey.private(tcp=True, aof=True) as server:
        found = connect(server.url, "x").check()

        assert (found.software, found.persistent, found.eviction) == ("valkey", True, "noeviction")
        assert found.process == connect(server.url, "x").gate.server()
    with Valkey.private(tcp=True, config=["--maxmemory-policy", "allkeys-lru"]) as server:
        found = connect(server.url, "x").check()

        assert (found.persistent, found.eviction) == (False, "allkeys-lru")


@pytest.mark.parametrize(
    "url",
    ["", "redis", "http://h:1", "redis+socket://", "redis://h:port", "redis://h:1/x", "sentinel://a;b"],
)
def test_an_address_that_cannot_be_one_is_said_with_the_form_of_a_right_one(url):
    with pytest.raises(LedgerUnusable, match=r"redis://HOST:PORT/DB"):
        connect(url, "x")


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3c/ret@host:6379/0",
        "redis://:s3c#ret@host:6379/0",
        "redis://:12#s3cret@host:6379/0",  # else a server at port 12 of this machine
        "redis://:s3c?ret@host:6379/0",
        "redis:s3cret@host",
        "s3cret",
        "s3cret://host",
        "redis://:s3cret@[host/0",
        "redis+socket://:s3c/ret@/tmp/s",
    ],
)
def test_an_address_that_cannot_be_read_shows_no_part_of_its_password(url):
    with pytest.raises(LedgerUnusable, match=r"redis://HOST:PORT/DB") as caught:
        connect(url, "x")
    assert "s3c" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("fleet", ["", "a b", "a:b", "../x", "x" * 65, "-x"])
def test_a_fleet_has_a_plain_name(fleet):
    with pytest.raises(LedgerUnusable, match="--fleet"):
        connect("redis://127.0.0.1:1/0", fleet)


def test_no_sentence_shows_the_password():
    assert redacted("redis://u:secret@h:1/2") == "redis://h:1/2"
    assert redacted("redis://u:sec/ret@h:1/2") == "redis://h:1/2"
    assert redacted("redis:secret@h") == "(no address)"
    with pytest.raises(LedgerUnavailable) as caught:
        connect(f"redis://:secret@127.0.0.1:{free_port()}/0", "x").check()
    assert "secret" not in str(caught.value)


def said(question):
    """The answer to an impatient client, asked again where the server was too slow for it."""

    def answered():
        with suppress(LedgerUnavailable):
            return (question(),)

    (answer,) = until(answered, 20, "an answer")
    return answer


def test_no_answer_is_said_within_the_timeout_and_the_next_question_finds_it_again():
    with Valkey.private(tcp=True) as server:
        world = LedgerWorld(server.url)
        hasty = connect(server.url, world.fleet, socket_timeout=1.0)
        assert not said(hasty.gate.is_open)
        server.freeze()
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            hasty.gate.is_open()
        assert time.monotonic() - began < 30
        server.thaw()
        assert said(hasty.gate.server)


def test_a_server_that_is_gone_is_said_and_the_next_question_finds_its_successor():
    with Valkey.private(tcp=True) as server:
        ledger = LedgerWorld(server.url).ledger
        assert not ledger.gate.is_open()
        server.kill()
        with pytest.raises(LedgerUnavailable):
            ledger.gate.is_open()
        server.start()
        assert ledger.gate.server(), "one reconnect is made by itself, and scripts are loaded again"


def test_a_move_without_an_answer_that_was_carried_out_is_repeated_safely():
    with Valkey.private(tcp=True) as server:
        world = LedgerWorld(server.url).up()
        world.bring(State.STARTING)  # the server knows the script now
        claim = world.bring(State.TAKEN)
        hasty = connect(server.url, world.fleet, socket_timeout=1.0)
        assert said(hasty.gate.is_open)
        server.freeze()
        with pytest.raises(LedgerUnavailable):
            hasty.claims.start(claim.run_id, claim.claim, "w@h", "n1")
        server.thaw()
        until(lambda: world.claims.get(claim.run_id).state is State.STARTING, 5, "the script to have run")

        assert said(lambda: hasty.claims.start(claim.run_id, claim.claim, "w@h", "n1")).moved


def test_a_full_redis_is_waited_for():
    with Valkey.private(tcp=True) as server:
        world = LedgerWorld(server.url).up()
        with server.client() as client:
            client.config_set("maxmemory", 1)
        with pytest.raises(LedgerUnavailable, match="cannot do it now"):
            world.claim()


# messages


@pytest.mark.parametrize("way", ["tcp_url", "socket_url"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_message_reaches_the_queue_beside_the_ledger_with_a_password(locked, way, apart):
    """The password stands in the address, or was given apart from it."""
    url = plain = getattr(locked, way)
    if apart:
        login, _, place = url.rpartition("@")
        plain = login.partition("://")[0] + "://" + place
    fleet = f"f{uuid.uuid4().hex[:8]}"
    sent = Message(run_id=str(uuid.uuid4()), claim=str(uuid.uuid4()), route=route())
    Publisher(make_app(plain, fleet=fleet, login=Login(lambda: url) if apart else None)).publish(sent)

    ledger = connect(url, fleet)
    (raw,) = ledger.store.client.lrange(queue_key(fleet, sent.route), 0, -1)
    assert json.loads(raw)["headers"]["id"] == sent.task_id
    ledger.close()


def test_a_refused_password_of_a_message_is_said_without_it(locked):
    app = make_app(f"redis://:wrong-secret@127.0.0.1:{locked.port}/0", fleet="x")
    with pytest.raises(LedgerUnavailable) as caught:
        Publisher(app).publish(Message(run_id=str(uuid.uuid4()), claim=str(uuid.uuid4()), route=route()))
    assert "wrong-secret" not in str(caught.value)


@pytest.mark.parametrize("way", ["tcp_url", "socket_url"])
def test_a_refusal_is_a_lost_connection_to_kombu_and_the_next_message_goes_by_a_new_one(way):
    """A primary that became a replica keeps its connections, while the address may lead to its successor."""
    with Valkey.private(tcp=True) as server, server.client() as client:
        # old servers do not know the name that the client library gives itself
        client.acl_setuser("app", enabled=True, passwords=["+pw"], commands=["+@all", "-client"], keys=["*"])
        app = make_app(getattr(server, way).replace("://", "://app:pw@"), fleet="x")
        publisher, message = Publisher(app), Message(run_id=str(uuid.uuid4()), claim=str(uuid.uuid4()), route=route())
        publisher.publish(message)
        with app.connection_for_write() as connection:
            kombu = connection.default_channel.client
            kombu.ping()
            before = {one["id"] for one in client.client_list() if one["user"] == "app"}
            client.config_set("min-replicas-to-write", 1)
            with pytest.raises(LedgerUnavailable, match="NOREPLICAS"):
                publisher.publish(message)
            # what reads the queues, acknowledges and keeps time has one way out then
            with pytest.raises(redis.exceptions.ConnectionError, match="NOREPLICAS"):
                kombu.set("x", "1")
            client.config_set("min-replicas-to-write", 0)
            publisher.publish(message)
            assert kombu.set("x", "1")
            # the client library loads its script when the server does not know it
            with kombu.lock("l"):
                pass
            after = {one["id"] for one in client.client_list() if one["user"] == "app"}

        assert client.llen(queue_key("x", message.route)) == 2
        assert after
        assert not after & before


# hints


@pytest.fixture
def heard(valkey):
    world = LedgerWorld(valkey.url)
    found = []
    listening = world.ledger.hints.listen(lambda kind, text: found.append((kind, text)))
    until(listening.subscribed.is_set, 5, "the subscription")
    yield world, found
    listening.close()
    until(lambda: not listening._thread.is_alive(), 10, "its thread to end")


def test_hints_are_heard_by_their_fleet_only(heard, valkey):
    world, found = heard
    LedgerWorld(valkey.url).ledger.hints.publish("poke", "elsewhere")
    world.ledger.hints.publish("poke", "here")
    until(lambda: found, 5, "a hint")

    assert found == [("poke", "here")]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("routes", lambda w: w.roster.know([route("new")])),
        ("wanted", lambda w: w.roster.want("w@h", "paused")),
        ("cancel", lambda w: w.claims.cancel(w.bring(State.QUEUED).run_id)),
        ("freed", lambda w: w.bring(State.ENDED)),
        ("freed", lambda w: w.claims.renew("w@h", "n1", 1, [held(w.bring(State.RUNNING), State.ENDED)])),
        ("freed", lambda w: w.roster.update(row(slots=5))),
    ],
)
def test_moves_that_somebody_waits_for_give_a_hint(heard, kind, cause):
    world, found = heard
    world.up()
    world.roster.know([route("old")])
    until(lambda: ("routes", "") in found, 5, "the last hint of the set-up")
    found.clear()
    cause(world)

    until(lambda: kind in [k for k, _ in found], 5, f"the hint {kind}")


def test_a_known_route_is_no_news(heard):
    world, found = heard
    world.roster.know([route("a")])
    world.roster.know([route("a")])
    world.ledger.hints.publish("poke")
    until(lambda: ("poke", "") in found, 5, "the last hint")

    assert [kind for kind, _ in found] == ["routes", "poke"]


def test_what_is_no_hint_is_passed_over(heard):
    world, found = heard
    channel = world.ledger.store.key("hints")
    for body in ("", "x", "[]", "7", '{"kind": "rm -rf"}', '{"kind": "shell", "text": ""}', b"\xff\xfe"):
        world.ledger.store.client.publish(channel, body)
    world.ledger.hints.publish("poke")
    until(lambda: found, 5, "the hint after them")

    assert found == [("poke", "")]


def test_a_subscription_is_made_anew_after_refusals_too():
    """The primary may be a replica now, where nobody publishes any more, and the address lead elsewhere."""
    with Valkey.private(tcp=True) as server, server.client() as client:
        world, found = LedgerWorld(server.url), []
        subscribers = lambda: {one["id"] for one in client.client_list(_type="pubsub")}  # noqa: E731
        with closing(world.ledger.hints.listen(lambda kind, _: found.append(kind))) as listening:
            until(listening.subscribed.is_set, 5, "the subscription")
            before = subscribers()
            client.config_set("min-replicas-to-write", 1)
            with pytest.raises(LedgerUnavailable):
                world.roster.know([route("a")])
            client.config_set("min-replicas-to-write", 0)
            world.roster.know([route("a")])
            until(lambda: subscribers() and not subscribers() & before, 10, "another connection")
            until(listening.subscribed.is_set, 5, "the subscription again")
            world.ledger.hints.publish("poke")
            until(lambda: "poke" in found, 5, "the hint")


def test_a_listener_outlives_an_outage():
    with Valkey.private(tcp=True) as server:
        world, found = LedgerWorld(server.url), []
        listening = world.ledger.hints.listen(lambda kind, _: found.append(kind))
        until(listening.subscribed.is_set, 5, "the subscription")
        server.kill()
        until(lambda: not listening.subscribed.is_set(), 5, "the loss to be seen")
        server.start()
        until(listening.subscribed.is_set, 15, "the subscription again")
        world.ledger.hints.publish("poke")
        until(lambda: found == ["poke"], 5, "the hint")
        listening.close()
