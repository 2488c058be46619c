"""Proxies: an API that is reached by one is told with it, without the proxy's login."""

import re

import pytest

from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiError, ApiRejected, ApiUnavailable, KeyRefused
from tests.loopback import HttpError, Loopback, Page
from tests.valkey import free_port


class Proxy(Loopback):
    """A proxy of HTTP that gives one answer to each request, and none to a request for a tunnel."""

    def __init__(self, answer):
        super().__init__(lambda *request: answer() if callable(answer) else answer)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()


@pytest.fixture
def asked(monkeypatch):
    """Asks an API that is reached by this proxy; what is told then."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def ask(proxy, scheme="http"):
        monkeypatch.setenv(f"{scheme}_proxy", proxy)
        with pytest.raises(ApiError) as told:
            Session(Address(url=f"{scheme}://box.invalid:4200/api"), pause=lambda _: None).get("/health", tries=1)
        assert "s3" not in str(told.value)
        return told.value

    return ask


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("login", ["", "http://", "http://ann:s3cret@", "http://ann:s3c@ret@"])
def test_a_proxy_that_does_not_answer_is_named_without_its_login(asked, login, scheme):
    place = f"127.0.0.1:{free_port()}"
    error = asked(f"{login}{place}", scheme)
    proxy = f"{'http://' if login else ''}{place}"
    assert type(error) is ApiUnavailable
    assert str(error) == (
        f"the Prefect API at {scheme}://box.invalid:4200/api (by the proxy {proxy} of {scheme}_proxy) cannot be reached"
        f": Connection refused; correct {scheme}_proxy, or name box.invalid in no_proxy"
    )


def http_error(status):
    def answer():
        raise HttpError(status, "no")

    return answer


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (http_error(502), ApiUnavailable, r" of http_proxy\) answers 502 Bad Gateway to GET /health"),
        (http_error(504), ApiUnavailable, r" of http_proxy\) failed with 504"),
        (http_error(403), KeyRefused, r" of http_proxy\) refuses our credentials \(403"),
        (
            http_error(407),
            ApiUnavailable,
            r" of http_proxy\) cannot be reached: the proxy asks for a login \(407\)",
        ),
        (
            Page(b"<p>Welcome</p>"),
            ApiRejected,
            r"4200/api \(by the proxy .* of http_proxy\) is not a Prefect",
        ),
    ],
)
def test_what_a_proxy_answers_for_an_api_names_the_proxy(asked, answer, kind, words):
    with Proxy(answer) as proxy:
        error = asked(f"http://ann:s3cret@127.0.0.1:{proxy.server_port}")
    assert isinstance(error, kind)
    assert re.search(words, str(error)), error
    assert f"(by the proxy http://127.0.0.1:{proxy.server_port} of http_proxy)" in str(error)


def test_a_proxy_that_gives_no_tunnel_is_told_with_its_answer(asked):
    with Proxy(None) as proxy:  # it knows no CONNECT
        error = asked(f"http://127.0.0.1:{proxy.server_port}", "https")
    assert "cannot be reached: Tunnel connection failed: 501" in str(error)
    assert str(error).endswith("; correct https_proxy, or name box.invalid in no_proxy")


@pytest.mark.parametrize("proxy", ["http://", "ftp://127.0.0.1:1", "socks5://127.0.0.1:1", "ann:s3cret@127.0.0.1:1"])
def test_what_is_no_proxy_is_told_and_not_taken_for_the_address_of_the_api(asked, proxy):
    error = asked(proxy)
    assert type(error) is ApiRejected
    words = "cannot be reached: no such proxy can be used, correct http_proxy, or name box.invalid in no_proxy"
    assert str(error).endswith(f" of http_proxy) {words}")


def test_no_proxy_is_named_for_a_host_that_is_reached_without(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = f"http://127.0.0.1:{free_port()}/api"
    with pytest.raises(ApiUnavailable, match=f"^the Prefect API at {url} cannot be reached: Connection refused$"):
        Session(Address(url=url), pause=lambda _: None).get("/health", tries=1)
