"""SecretFiles: what is read again, what stays in use, and what a signal brings about."""

import os
import signal

import pytest

from flowfleet.ledger.login import Login, without_login
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import resolve
from flowfleet.settings.secret_files import SecretFiles
from flowfleet.signals import ReloadOnSighup


@pytest.fixture
def made(tmp_path):
    """The secrets of a part, and how their files are replaced."""

    def write(name, text):
        (tmp_path / name).write_text(text)

    write("redis", "redis://:one@box:1/0")
    write("token", "token-one")
    write("key", "key-one")
    environ = {f"FLOWFLEET_{name.upper()}_FILE": str(tmp_path / name) for name in ("redis", "key")}
    environ["FLOWFLEET_PAGE_TOKEN_FILE"] = str(tmp_path / "token")
    return SecretFiles(resolve(CommonSettings, {}, environ, {})), write


def test_each_new_connection_and_each_request_uses_what_the_file_has_then(made):
    secrets, write = made
    before = secrets.login.get_credentials(), secrets.page_token()
    write("redis", "redis://bob:t%40wo@box:1/0")
    write("token", "token-two")
    assert before == (("one",), "token-one")
    assert (secrets.login.get_credentials(), secrets.page_token()) == (("bob", "t@wo"), "token-two")


def test_a_file_that_is_empty_for_a_moment_leaves_the_last_secret_in_use_and_is_said_once(made, caplog):
    secrets, write = made
    write("redis", "")
    write("key", "")  # and one that nobody asks for here is in nobody's way
    assert [secrets.login.get_credentials() for _ in range(3)] == [("one",)] * 3
    assert len(caplog.records) == 1
    assert "which is empty" in caplog.records[0].error
    assert secrets.page_token() == "token-one"
    write("redis", "redis://:two@box:1/0")
    assert secrets.login.get_credentials() == ("two",)


def test_a_password_for_another_server_is_not_told_to_this_one(made, caplog):
    secrets, write = made
    write("redis", "redis://:other@elsewhere:1/0")
    assert secrets.login.get_credentials() == ("one",)
    assert "restart" in caplog.records[0].error
    assert "other" not in caplog.text


def test_a_replaced_secret_is_told_of_without_its_value(made, caplog):
    secrets, write = made
    caplog.set_level("INFO")
    assert not secrets.renew()
    write("token", "token-two")
    assert secrets.renew()
    assert [record.secret for record in caplog.records] == ["page token"]
    assert "token-two" not in caplog.text


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("redis://box/0", ()),
        ("redis://:p%2Fw@box/0", ("p/w",)),
        ("redis://bob:pw@box/0", ("bob", "pw")),
        ("redis+socket://:pw@/run/redis.sock?virtual_host=1", ("pw",)),
    ],
)
def test_a_login_is_taken_from_the_address_and_leaves_it_whole(url, login):
    assert Login(lambda: url).get_credentials() == login
    assert without_login(url) == url.replace(url[url.index("//") + 2 : url.index("@") + 1] if "@" in url else "\0", "")


class Holder:
    def __init__(self, *, refused=False, changed=False):
        self.key_refused, self.changed, self.asked = refused, changed, 0

    def renew(self):
        self.asked += 1
        return self.changed


def test_a_hangup_has_every_holder_look_again_and_a_refusal_too():
    told = []
    reload = ReloadOnSighup(lambda: told.append(True), look_seconds=0.01)
    quiet, changing = Holder(), Holder(changed=True)
    reload.look(quiet, changing)
    assert (quiet.asked, changing.asked, told) == (0, 0, []), "nothing is wrong"

    quiet.key_refused = True
    reload.look(quiet, changing)
    assert (quiet.asked, changing.asked, told) == (1, 1, [True])

    quiet.key_refused, old = False, signal.getsignal(signal.SIGHUP)
    try:
        reload.install()
        os.kill(os.getpid(), signal.SIGHUP)
        reload.look(changing, quiet)
    finally:
        signal.signal(signal.SIGHUP, old)
    assert (quiet.asked, changing.asked, told) == (2, 2, [True, True])
