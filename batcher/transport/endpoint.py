"""Where requests go and who sends them: the base URL, taken apart, and the headers, masked."""

import ipaddress
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import NoReturn
from urllib.parse import SplitResult, quote, urlsplit

import msgspec

from batcher.errors import ConfigurationError

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_PORTS = {"http": 80, "https": 443}

#: A header's name (RFC 9110, 5.6.2).
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: No control characters but the tab (RFC 9110, 5.5), and nothing that latin-1 can't say.
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
#: What a request target keeps as it is (RFC 3986, 3.3); the rest is percent-encoded, line breaks above all.
_TARGET_SAFE = "/%?:@!$&'()*+,;=~"

_SHORTEST_CREDENTIAL = 8

#: Headers that frame the message or name the attempt: the transport writes them and nobody else.
_OWN = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "expect", "idempotency-key"}
    | {"keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)


class Secret:
    """A header's value, which shows as `***` wherever it is printed, logged or formatted.

    >>> Secret("Bearer sk-1")
    ***
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value: only for the bytes that go to the server."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled")


class Endpoint(msgspec.Struct, frozen=True):
    """One server and one account. Make it with `from_environment` or `parse`; its repr holds no credential.

    >>> Endpoint.parse("http://localhost:8000/v1", {"Authorization": "Bearer sk-1"}).target("/v1/embeddings")
    '/v1/embeddings'
    """

    #: `http` or `https`.
    scheme: str
    #: A name, or an IP address without brackets.
    host: str
    port: int
    #: Begins with a slash and ends without one; empty if the base URL has no path.
    base_path: str
    #: Sent with every request. All values are masked: any of them may be a credential.
    headers: tuple[tuple[str, Secret], ...]

    @classmethod
    def parse(cls, base_url: str, headers: Mapping[str, str] | None = None) -> "Endpoint":
        """Take a base URL apart; `ConfigurationError` if it can't be one, or a header can't be sent."""
        parts = _split(base_url)
        checked = tuple(
            (name, _checked(name, value, f"the header {name!r}")) for name, value in (headers or {}).items()
        )
        host = _host(parts, base_url)
        port = _port(parts, base_url) or DEFAULT_PORTS[parts.scheme]
        return cls(parts.scheme, host, port, quote(parts.path.rstrip("/"), safe=_TARGET_SAFE), checked)

    @classmethod
    def from_environment(cls, base_url: str | None, environ: Mapping[str, str]) -> "Endpoint":
        """Read what the official client reads: `OPENAI_API_KEY`, `OPENAI_BASE_URL` and the others.

        `base_url` (the user's option) goes before `OPENAI_BASE_URL`; `OPENAI_CUSTOM_HEADERS` goes before
        the headers that the other variables make. Raises `ConfigurationError`.
        """
        key = environ.get("OPENAI_API_KEY", "").strip()
        if not key:
            raise ConfigurationError(
                "no API key: set OPENAI_API_KEY in the environment or in .env "
                "(for a server that wants none, any value will do)"
            )
        headers = {"Authorization": _checked("Authorization", f"Bearer {key}", "OPENAI_API_KEY")}
        for variable, name in (
            ("OPENAI_ORG_ID", "OpenAI-Organization"),
            ("OPENAI_PROJECT_ID", "OpenAI-Project"),
        ):
            if value := environ.get(variable, "").strip():
                headers[name] = _checked(name, value, variable)
        for name, secret in _custom_headers(environ.get("OPENAI_CUSTOM_HEADERS", "")):
            for earlier in [known for known in headers if known.lower() == name.lower()]:
                del headers[earlier]
            headers[name] = secret
        url = base_url or environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_BASE_URL
        bare = cls.parse(url)
        return cls(bare.scheme, bare.host, bare.port, bare.base_path, tuple(headers.items()))

    @property
    def base_url(self) -> str:
        """The base URL in its plainest form: equal for two endpoints exactly if they are the same place."""
        return f"{self.scheme}://{self.authority}{self.base_path}"

    @property
    def authority(self) -> str:
        """The `Host` header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def target(self, url: str) -> str:
        """Return the request target of a job's url: its leading `/v1` gives way to the base path."""
        if self.base_path and (url == "/v1" or url.startswith("/v1/")):
            url = url[3:]
        return quote(self.base_path + url, safe=_TARGET_SAFE)

    def mask(self, text: bytes) -> bytes:
        """Return what a server said with `***` for each of our credentials: some errors quote the request."""
        for _, secret in self.headers:
            # A scheme (`Bearer`) is no secret, and a word as short as one would be found everywhere.
            credential = secret.reveal().split(" ")[-1].encode("latin-1")
            if len(credential) >= _SHORTEST_CREDENTIAL:
                text = text.replace(credential, b"***")
        return text

    def head(self, url: str) -> bytes:
        """Return the bytes that every request to a job's url begins with, up to the idempotency key."""
        ours = {
            "Host": self.authority,
            "Accept": "application/json",
            "User-Agent": f"batcher/{version('batcher-openai')}",
        }
        given = {name.lower() for name, _ in self.headers}
        lines = [f"POST {self.target(url)} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in ours.items() if name.lower() not in given]
        lines += [f"{name}: {secret.reveal()}" for name, secret in self.headers]
        lines += ["Content-Type: application/json", "Idempotency-Key: "]
        return "\r\n".join(lines).encode("latin-1")


def _refuse(base_url: str, problem: str) -> ConfigurationError:
    """Name the base URL, unless what is wrong with it may hold a password or a key."""
    shown = "" if any(mark in base_url for mark in "@?#") else f" {base_url!r}"
    return ConfigurationError(f"the base URL{shown} {problem}: give one like {DEFAULT_BASE_URL}")


def _split(base_url: str) -> SplitResult:
    # urlsplit drops line breaks and tabs silently, so they are looked for first
    if not base_url.isprintable() or " " in base_url:
        raise _refuse(base_url, "holds a space or a control character")
    try:
        parts = urlsplit(base_url)
    except ValueError:
        raise _refuse(base_url, "is malformed") from None
    if parts.scheme not in DEFAULT_PORTS or "://" not in base_url:
        raise _refuse(base_url, "does not begin with http:// or https://")
    if "@" in parts.netloc:
        raise _refuse(base_url, "holds a user name or password (credentials belong in the environment)")
    if "?" in base_url or "#" in base_url:
        raise _refuse(base_url, "holds a query or a fragment")
    return parts


def _host(parts: SplitResult, base_url: str) -> str:
    host = parts.hostname or ""
    if not host:
        raise _refuse(base_url, "names no host")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _refuse(base_url, "names an impossible host") from None
    if not _HOST.fullmatch(name):
        raise _refuse(base_url, "names an impossible host")
    return name


def _port(parts: SplitResult, base_url: str) -> int | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise _refuse(base_url, "has an impossible port")
    return port


def _checked(name: str, value: str, where: str) -> Secret:
    """Return the value masked; `where` says what to correct, since neither value nor cause may be shown."""
    if not _TOKEN.fullmatch(name):
        raise ConfigurationError(f"{where} has a name that no header can have")
    if name.lower() in _OWN:
        raise ConfigurationError(f"{where} sets {name}, which batcher sets itself: leave it out")
    if not _VALUE.fullmatch(value):
        raise ConfigurationError(
            f"{where} has a line break, another control character, or one outside latin-1 in its value"
        )
    return Secret(value)


def _custom_headers(text: str) -> list[tuple[str, Secret]]:
    headers = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of OPENAI_CUSTOM_HEADERS"
        name, colon, value = line.partition(":")
        if not colon:
            raise ConfigurationError(f"{where} is not of the form `Name: value`")
        headers.append((name.strip(), _checked(name.strip(), value.strip(), where)))
    return headers
