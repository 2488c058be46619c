"""Connection: the keep-alive HTTP connection of one thread to a Prefect API."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

#: a connection that was idle for so long is closed, and not used again: uvicorn, which serves Prefect 3, closes one
#: after 5 s, and a request that meets its end gets no answer
IDLE_SECONDS = 3.0


class _Headers(requests.auth.AuthBase):
    """The `auth` that puts our headers on each request; as an `auth` it also keeps a .netrc from replacing them."""

    def __init__(self, headers: Callable[[], Mapping[str, str]]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers())
        return request


class HttpConnection:
    """The connection of one thread, opened when it is needed; not for use by two threads."""

    def __init__(self, headers: Callable[[], Mapping[str, str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._http = requests.Session()
        self._http.auth = _Headers(headers)
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._http.mount("http://", adapter)
        self._http.mount("https://", adapter)
        self._clock = clock
        self._used_at: float | None = None

    def is_open(self) -> bool:
        """Whether the next request goes by a connection that was used before; one that is idle too long is closed."""
        if self._used_at is not None and self._clock() - self._used_at >= IDLE_SECONDS:
            self._http.close()
            self._used_at = None
        return self._used_at is not None

    def send(self, method: str, url: str, **options: Any) -> requests.Response:
        """Send a request and read its response whole; options and errors are those of `requests`."""
        self._used_at = None
        answer = self._http.request(method, url, **options)
        self._used_at = self._clock()
        return answer


def is_unanswered(error: requests.exceptions.RequestException) -> bool:
    """Whether the server has ended the connection before any byte of its answer: it may have closed it as idle."""
    return isinstance(error, requests.exceptions.ConnectionError) and any(
        isinstance(cause, ConnectionResetError | BrokenPipeError) for cause in causes(error)
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that caused it: requests and urllib3 put causes into arguments too."""
    left: list[object] = [error]
    seen: set[int] = set()
    while left:
        item = left.pop()
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            left += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
