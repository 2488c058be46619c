"""Image names: the parts of an image's name, and the patterns of `--allow-image`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from flowfleet.errors import UnsupportedRun

#: what a name without a registry part means to Docker
DOCKER_HUB = "docker.io"
_HUB_FOLDER = "library"
#: other names of the same registry
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_LATEST = "latest"
_LONGEST = 512
#: loosely, as the engine has the last word: what would change the meaning of a request's address is kept out
_FITS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """One image's name: REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST, as it was written."""

    text: str
    #: `docker.io` where none is written
    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a name; raises `UnsupportedRun` for one that no registry could have."""
        if len(text) > _LONGEST or not _FITS.fullmatch(text):
            raise UnsupportedRun(f"the image name {text[:100]!r} is none that a registry can have: correct it")
        name, _, digest = text.partition("@")
        head, slash, rest = name.partition("/")
        # as the engine tells them apart: a host has a dot, a colon, or is localhost (source: distribution/reference)
        has_registry = bool(slash) and ("." in head or ":" in head or head == "localhost")
        registry, path = (head, rest) if has_registry else (DOCKER_HUB, name)
        repository, _, tag = path.partition(":")
        return cls(text=text, registry=registry, repository=repository, tag=tag or None, digest=digest or None)

    @property
    def moves(self) -> bool:
        """Whether the name may mean another image tomorrow, so that it is pulled each time: `latest`, or no tag."""
        return self.digest is None and self.tag in (None, _LATEST)

    @property
    def to_pull(self) -> str:
        """The name as a pull takes it: without a tag all tags would be pulled."""
        return self.text if self.tag or self.digest else f"{self.text}:{_LATEST}"

    def forms(self) -> set[str]:
        """All ways to write this name, by which a pattern may mean it."""
        registries = {self.registry}
        if self.registry in _HUB_NAMES:
            registries |= {DOCKER_HUB, ""}
        repositories = {self.repository}
        if self.registry in _HUB_NAMES:
            bare = self.repository.removeprefix(f"{_HUB_FOLDER}/")
            repositories |= {bare, *([] if "/" in bare else [f"{_HUB_FOLDER}/{bare}"])}
        tags = {f":{self.tag}"} if self.tag else {f":{_LATEST}", ""} if not self.digest else {""}
        ends = {f"{tag}@{self.digest}" if self.digest else tag for tag in tags}
        return {
            f"{registry}{'/' if registry else ''}{repository}{end}"
            for registry in registries
            for repository in repositories
            for end in ends
        }


def is_allowed(name: ImageName, patterns: Sequence[str]) -> bool:
    """Whether one of these patterns means this image; without any pattern all are allowed.

    `*` stands for any text, slashes too. A pattern without a tag means each tag, and one that is a registry's host
    alone means all of its images, as in the reference's `reg_allow_list`.
    """
    return not patterns or any(_means(pattern, name) for pattern in patterns)


def _means(pattern: str, name: ImageName) -> bool:
    if "/" not in pattern and ("." in pattern or ":" in pattern or pattern == "localhost"):
        host = {name.registry} | (set(_HUB_NAMES) if name.registry in _HUB_NAMES else set())
        if any(fnmatch.fnmatchcase(each, pattern) for each in host):
            return True
    last = pattern.rpartition("/")[2]
    bare = ":" not in last and "@" not in last
    for form in name.forms():
        if fnmatch.fnmatchcase(form, pattern):
            return True
        if bare and fnmatch.fnmatchcase(_without_tag(form), pattern):
            return True
    return False


def _without_tag(form: str) -> str:
    form = form.partition("@")[0]
    head, slash, last = form.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"
