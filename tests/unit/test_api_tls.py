"""TLS: whom the session trusts, and what it says when it does not."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiRejected
from tests.lawless_api import LawlessApi
from tests.needs import need


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, with its key in the same file."""
    need(shutil.which("openssl") is not None, "a self-signed certificate: install openssl")
    folder = tmp_path_factory.mktemp("tls")
    both, key = folder / "both.pem", folder / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(both)], check=True, capture_output=True)
    with both.open("a") as file:
        file.write(key.read_text())
    return both


@pytest.fixture
def secure_api(certificate: Path) -> Iterator[tuple[LawlessApi, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    api = LawlessApi()
    api._server.socket = context.wrap_socket(api._server.socket, server_side=True)
    with api:
        yield api, api.api_url.replace("http://", "https://")


def test_an_unknown_certificate_is_refused_with_the_remedy(secure_api):
    _, url = secure_api
    with pytest.raises(ApiRejected, match=r"certificate .* is not trusted.*--ca-file.*PREFECT_API_SSL_CERT_FILE"):
        Session(Address(url=url), pause=lambda _: None).get("/health")


def test_a_ca_file_makes_it_trusted_even_beside_another_bundle(secure_api, certificate, monkeypatch, tmp_path):
    api, url = secure_api
    other = tmp_path / "bundle.pem"
    other.write_bytes(Path(ssl.get_default_verify_paths().cafile or "/dev/null").read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    assert Session(Address(url=url, ca_file=certificate), pause=lambda _: None).get("/health") is True
    assert api.counted("GET /health") == 1


def test_an_insecure_address_is_not_checked_and_that_is_said(secure_api, caplog):
    _, url = secure_api
    session = Session(Address(url=url, insecure=True), pause=lambda _: None)
    assert session.get("/health") is True
    assert [record.message for record in caplog.records] == ["the certificate of the Prefect API is not checked"]
