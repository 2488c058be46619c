"""Error answers: which wait, which end a start, and how those of Redis 6.2 inside a script are read."""

import socket

import pytest
from redis import exceptions
from redis._parsers import _RESP2Parser

from flowfleet.errors import LedgerUnavailable, LedgerUnusable, LoginRefused
from flowfleet.ledger.error_answers import answer_of, ledger_error

#: what a Redis 6.2.14 puts around an error inside a script, recorded
IN_SCRIPT = "ERR Error running script (call to f_872bc6701b4ac00ebb820e81652ffe2b4bc16f1b): @user_script:1: "
CALL = IN_SCRIPT + "@user_script: 1: "
#: and Valkey 9 behind it
BEHIND = " script: on @user_script:1."


def error(answer):
    """What the client library makes of the answer of a server."""
    return _RESP2Parser(4096).parse_error(answer)


#: answers as recorded of Redis 6.2.14 and Valkey 9.1.2, with their code
LATER = {
    "NOREPLICAS Not enough good replicas to write.": "NOREPLICAS",
    CALL + "-NOREPLICAS Not enough good replicas to write.": "NOREPLICAS",
    "READONLY You can't write against a read only replica." + BEHIND: "READONLY",
    CALL + "-READONLY You can't write against a read only replica.": "READONLY",
    "OOM command not allowed when used memory > 'maxmemory'." + BEHIND: "OOM",
    CALL + "-OOM command not allowed when used memory > 'maxmemory'.": "OOM",
    CALL + "-MISCONF Redis is configured to save RDB snapshots, but it is currently not able to persist": "MISCONF",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": "UNBLOCKED",
}
RIGHTS = {
    "NOAUTH Authentication required.": "NOAUTH",
    "WRONGPASS invalid username-password pair or user is disabled.": "NOAUTH",
    "NOPERM User app has no permissions to run the 'brpop' command": "NOPERM",
    "ERR ACL failure in script: User app has no permissions to run the 'set' command" + BEHIND: "NOPERM",
    CALL + "The user executing the script can't run this command or subcommand": "NOPERM",
    "NOPERM this user has no permissions to access one of the keys used as arguments": "NOPERM",
    "NOPERM No permissions to access a channel": "NOPERM",
}
#: what is lacking, by the answers of Redis 6.2, of Redis 7 and of Valkey 9
LACKING = {
    "NOPERM this user has no permissions to run the 'brpop' command or its subcommand": "+brpop",
    "NOPERM User app has no permissions to run the 'script|load' command": "+script|load",
    "ERR ACL failure in script: User app has no permissions to run the 'set' command" + BEHIND: "+set",
    CALL + "The user executing the script can't run this command or subcommand": "the rights of a fleet",
    "NOPERM this user has no permissions to access one of the keys used as arguments": "~flowfleet:*",
    "NOPERM No permissions to access a key": "~flowfleet:*",
    "ERR ACL failure in script: No permissions to access a key" + BEHIND: "~flowfleet:*",
    CALL + "The user executing the script can't access at least one of the keys mentioned in the command arguments": (
        "~flowfleet:*"
    ),
    "NOPERM this user has no permissions to access one of the channels used as arguments": "&flowfleet:*",
    "NOPERM No permissions to access a channel": "&flowfleet:*",
}
ONCE_ANSWERED = {
    "EXECABORT Transaction discarded because of previous errors.": "EXECABORT",
    "TRYAGAIN Multiple keys request during rehashing of slot": "TRYAGAIN",
    "WRONGTYPE Operation against a key holding the wrong kind of value" + BEHIND: "WRONGTYPE",
    IN_SCRIPT + "WRONGTYPE Operation against a key holding the wrong kind of value": "WRONGTYPE",
    "ERR unknown command 'EVALSHA', with args beginning with: ": "ERR",
    "ERR no such upstream": "ERR",
}
#: faults of the script itself
FAULTS = [
    "ERR user_script:1: attempt to index local 'x' (a nil value)" + BEHIND,
    IN_SCRIPT + "user_script:1: attempt to index local 'x' (a nil value)",
    "ERR Error compiling script (new function): user_script:1: unexpected symbol near '<eof>'",
]


@pytest.mark.parametrize(("answer", "code"), [*LATER.items(), *RIGHTS.items(), *ONCE_ANSWERED.items()])
def test_after_a_good_answer_every_error_answer_is_waited_for(answer, code):
    found = ledger_error(error(answer), "redis://h:1/0", answered=True)

    assert answer_of(error(answer))[0] == code
    assert type(found) is (LoginRefused if answer in RIGHTS else LedgerUnavailable)
    assert "user_script: 1" not in str(found), "the sentence has what Redis says, without the frame of 6.2"


@pytest.mark.parametrize("answer", [*LATER, *RIGHTS, *ONCE_ANSWERED])
def test_before_it_only_what_a_usable_server_says_is(answer):
    kind = LedgerUnavailable if answer in LATER else LedgerUnusable
    assert type(ledger_error(error(answer), "redis://h:1/0", answered=False)) is kind


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(("answer", "right"), LACKING.items())
def test_a_right_that_is_lacking_is_no_wrong_password_and_is_named(answer, right, answered):
    found = str(ledger_error(error(answer), "redis://h:1/0", answered=answered))
    assert found.startswith("Redis at redis://h:1/0 does not let our user ")
    assert f"; give it {right}, as in the ACL line of docs/several-machines.md" in found
    assert "password" not in found


@pytest.mark.parametrize("answered", [False, True])
def test_a_database_that_the_server_does_not_have_is_told(answered):
    found = str(ledger_error(error("ERR DB index is out of range"), "redis://h:1/99", answered=answered))
    assert found.startswith(
        "Redis at redis://h:1/99 has no such database (DB index is out of range); correct its number"
    )
    cluster = error("ERR SELECT is not allowed in cluster mode")
    assert "is a cluster" in str(ledger_error(cluster, "redis://h:1/1", answered=answered))


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("answer", FAULTS)
def test_a_fault_of_a_script_is_ours_and_never_waited_for(answer, answered):
    assert type(ledger_error(error(answer), "redis://h:1/0", answered=answered)) is LedgerUnusable


@pytest.mark.parametrize("exc", [exceptions.ConnectionError("gone"), exceptions.TimeoutError("slow")])
def test_no_answer_is_always_waited_for(exc):
    found = ledger_error(exc, "redis://h:1/0", answered=False)
    assert type(found) is LedgerUnavailable
    assert "does not answer" in str(found)


def of_system(error):
    """What the client library raises over an error of the system."""
    try:
        try:
            raise error
        except OSError as below:
            raise exceptions.ConnectionError(f"Error {below.errno} connecting to h:1. {below.strerror}.") from below
    except exceptions.ConnectionError as above:
        return above


@pytest.mark.parametrize(
    ("exc", "says"),
    [
        (of_system(ConnectionRefusedError(111, "Connection refused")), "connection refused"),
        (of_system(socket.gaierror(-2, "Name or service not known")), "name or service not known"),
        (of_system(TimeoutError("timed out")), "no answer in time"),
        (exceptions.ConnectionError("Connection closed by server."), "connection closed by server"),
        (exceptions.ConnectionError("SSL is not there."), "SSL is not there."),
    ],
)
def test_why_there_is_no_answer_is_said_without_the_words_of_the_client_library(exc, says):
    assert str(ledger_error(exc, "redis://h:1/0", answered=True)) == f"Redis at redis://h:1/0 does not answer ({says})"
