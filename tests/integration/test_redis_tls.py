"""Redis by TLS: a real server of Debian, whose name has to be proved, for ledger, hints and Celery."""

import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from flowfleet import broker
from flowfleet import ledger as ledgers
from flowfleet.errors import LedgerUnavailable
from flowfleet.flow_run import Message, Route
from flowfleet.ledger.login import with_authority
from tests.container_engine import install
from tests.needs import need
from tests.valkey import free_port
from tests.waiting import until


def openssl(*argv):
    subprocess.run(["openssl", *argv], check=True, capture_output=True)


def certificate(folder, name, *, ca=None):
    """A key and a certificate for `localhost`; without `ca` one that signs others."""
    key, request, made = (folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
    if ca is None:
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                "-keyout", str(key), "-out", str(made))  # fmt: skip
        return made
    names = folder / f"{name}.ext"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(request))
    openssl("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca.with_suffix(".key")), "-days", "2",
            "-CAcreateserial", "-extfile", str(names), "-out", str(made))  # fmt: skip
    return made


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Its address, the authority that has signed its certificate, and one that has not."""
    need(shutil.which("openssl"), "openssl")
    install(("redis-server",))
    folder = tmp_path_factory.mktemp("tls")
    ca, other = certificate(folder, "ca"), certificate(folder, "other")
    own, port = certificate(folder, "server", ca=ca), free_port()
    argv = ["redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--requirepass", "pw",
            "--tls-cert-file", str(own), "--tls-key-file", str(own.with_suffix(".key")), "--tls-ca-cert-file", str(ca),
            "--tls-auth-clients", "no", "--save", "", "--dir", str(folder)]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        url = f"rediss://:pw@localhost:{port}/0"
        until(lambda: answers(with_authority(url, ca)), 20, "Redis by TLS")
        yield url, ca, other
    finally:
        server.kill()
        server.wait()


def answers(url):
    with closing(ledgers.connect(url, "f")) as ledger:
        try:
            return ledger.check()
        except LedgerUnavailable:
            return None


def test_ledger_and_messages_go_over_tls(tls):
    url, ca, _ = tls
    address = with_authority(url, ca)
    route = Route("prefect3", "pool", "default")
    broker.Publisher(broker.make_app(address, fleet="f")).publish(Message(run_id="r", claim="c", route=route))
    with closing(ledgers.connect(address, "f")) as ledger:
        assert ledger.store.client.llen(broker.queue_key("f", route)) == 1
        assert "pw" not in ledger.store.address
        assert str(ca) not in ledger.store.address


def test_a_server_that_cannot_prove_its_name_is_not_talked_to(tls):
    url, _, other = tls
    wrong = closing(ledgers.connect(with_authority(url, other), "f"))
    with wrong as ledger, pytest.raises(LedgerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        ledger.check()
    message = Message(run_id="r", claim="c", route=Route("prefect3", "pool", "default"))
    with pytest.raises(LedgerUnavailable):
        broker.Publisher(broker.make_app(with_authority(url, other), fleet="f")).publish(message)


def test_the_authority_is_that_of_the_option_and_stands_once_in_the_address():
    assert with_authority("redis://h/0", Path("/ca")) == "redis://h/0"
    twice = with_authority(with_authority("rediss://u:p%40@h:1/0", Path("/a")), Path("/ca"))
    assert twice == "rediss://u:p%40@h:1/0?ssl_ca_certs=%2Fca"
