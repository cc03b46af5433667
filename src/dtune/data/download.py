"""Files from the network: resumed where they broke off, checked, and there only when they are whole."""

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from urllib.parse import urlsplit

from dtune.errors import DataError

BLOCK = 2**16
PATIENT = (408, 425, 429, 500, 502, 503, 504)
"""Answers worth asking again after."""

Progress = Callable[[int, int | None], None]
"""Is told the bytes that are here and, where the server says it, the bytes of the whole file."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to ask again, and when to give up."""

    timeout: float = 30.0
    """Seconds in which at least `least` bytes have to come: a try that is slower is ended."""
    least: int = 4096
    """Bytes."""
    tries: int = 6
    """Tries in a row that bring nothing, after which it is given up."""
    pause: float = 1.0
    """Seconds before the second try; doubled with each further one that brings nothing, up to a minute."""


PATIENCE = Patience()


class _Interrupted(Exception):
    """The connection broke or stalled: what has come is kept, and it can be asked again."""


class _Unreachable(_Interrupted):
    """There is no way to the server: asked again once only, for it is mostly the network that is not there."""


@dataclass
class _Part:
    """What has come of a file so far, and of which version of it."""

    file: BufferedRandom
    note: Path
    version: str | None  # the server's ETag or date of change

    @property
    def size(self) -> int:
        return self.file.seek(0, 2)

    def restart(self, version: str | None) -> None:
        self.file.truncate(0)
        self.version = version
        self.note.write_text(json.dumps({"version": version}))


def download(
    address: str,
    path: Path,
    *,
    signature: bytes = b"",
    sha256: str | None = None,
    progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> None:
    """Fetches a file by HTTP; what broke off in an earlier call is gone on with.

    It grows beside `path` under a name that ends in `.part`, and takes its name when it is whole: of the size the
    server said, beginning with `signature`, of the hash where one is known. A file that changed on the server
    meanwhile (ETag, Last-Modified) is begun again.

    Args:
        address: of the file; up to 10 redirections are followed.
        path: where it goes; its folder is made. A file there is replaced.
        signature: the first bytes it has to have: an error page has others.
        sha256: its hash, in hexadecimal.
        progress: told after every block.
        patience: with a server that stalls.

    Raises:
        DataError: if the server refuses or gives up, another process is fetching the same file, or it is not the
            file that was meant.
    """
    if _scheme(address) not in ("http", "https"):
        raise DataError(
            f"{address!r} is no address of a file on the network: it has to begin with http:// or https://."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _part(path) as part:
        _fetch(address, part, progress or _silent, patience)
        _check(part, address, signature, sha256)
        part.file.flush()
        os.fsync(part.file.fileno())
        Path(part.file.name).replace(path)
        part.note.unlink(missing_ok=True)


def _scheme(address: str) -> str:
    try:
        return urlsplit(address).scheme
    except ValueError as error:
        raise _no_address(address, error) from error


def _no_address(address: str, error: Exception) -> DataError:
    return DataError(
        f"{address!r} is, or leads on to, no address that can be asked ({_reason(error)}): correct it, or fetch the "
        "file by hand."
    )


def _silent(*_: int | None) -> None:
    """Tells nobody."""


@contextmanager
def _part(path: Path) -> Iterator[_Part]:
    """The unfinished file beside `path`, for this process alone."""
    note = path.with_name(path.name + ".part.json")
    with path.with_name(path.name + ".part").open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{file.name} is being fetched by another process: wait for it.") from error
        if not _still_named(file):
            raise DataError(
                f"{path} has just been fetched by another process, or given up: look whether it is there, and run the "
                "same command again if not."
            )
        try:
            version = json.loads(note.read_bytes())["version"]
        except (OSError, ValueError, KeyError, TypeError):
            version = None
        yield _Part(file, note, version)


def _still_named(file: BufferedRandom) -> bool:
    """Whether a file has the name it was opened by: who held its lock before may have renamed or deleted it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def _fetch(address: str, part: _Part, progress: Progress, patience: Patience) -> None:
    """Asks until the file is whole, or `patience` is at its end."""
    vain = 0
    while True:
        before = part.size
        try:
            return _ask(address, part, progress, patience)
        except _Interrupted as error:
            vain = 0 if part.size > before else vain + 1
            if vain >= (min(patience.tries, 2) if isinstance(error, _Unreachable) else patience.tries):
                raise DataError(
                    f"{address} cannot be fetched ({error}): {part.size:,} bytes are kept in {part.file.name}, and the "
                    "same command goes on from there when the network is back."
                ) from error
        time.sleep(min(patience.pause * 2 ** max(vain - 1, 0), 60.0))


def _ask(address: str, part: _Part, progress: Progress, patience: Patience) -> None:
    """One request, for the rest of the file or all of it."""
    size = part.size if part.version is not None else 0  # without a version nobody knows what the rest belongs to
    headers = {"Accept-Encoding": "identity", "User-Agent": "dtune"}
    if size:
        headers |= {"Range": f"bytes={size}-", "If-Range": part.version or ""}
    try:
        response = _opener().open(urllib.request.Request(address, headers=headers), timeout=patience.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and size:  # nothing is left to send, or the file has shrunk
            if error.headers.get("Content-Range") == f"bytes */{size}":
                return
            part.restart(None)
            raise _Interrupted("the file became shorter") from error
        if error.code in PATIENT:
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
        raise DataError(
            f"{address} is refused by the server ({error.code} {' '.join(error.reason.split())})."
        ) from error
    except (ValueError, http.client.InvalidURL) as error:  # the same whenever it is asked again
        raise _no_address(address, error) from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        kind = _Unreachable if isinstance(cause, socket.gaierror | ConnectionRefusedError) else _Interrupted
        raise kind(_reason(error)) from error
    with response:
        whole = _settle(response, part, size, address)
        _receive(response, part, whole, progress, patience)


def _settle(response: http.client.HTTPResponse, part: _Part, size: int, address: str) -> int | None:
    """Makes the part what the answer goes on from; the size the whole file will have, where the server says it."""
    length = response.headers.get("Content-Length")
    rest = int(length) if length is not None and length.isdecimal() and len(length) < 20 else None
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
    tag = response.headers.get("ETag")
    version = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    if response.status == 206 and not (size and begins and version in (None, part.version)):
        part.restart(None)
        raise _Interrupted("the server sent another part than asked for, or of another version")
    if response.status != 206:  # all of it: the first time, or it has changed, or the server cannot do parts
        part.restart(version)
        size = 0
    free = shutil.disk_usage(Path(part.file.name).parent).free
    if rest is not None and rest > free:
        raise DataError(f"{address} needs {rest:,} bytes where {free:,} are free on the disk: make room for it.")
    return None if rest is None else size + rest


def _receive(
    response: http.client.HTTPResponse, part: _Part, whole: int | None, progress: Progress, patience: Patience
) -> None:
    """Takes what comes until the end, a stall, or an end that is too early."""
    since, came, size = time.monotonic(), 0, part.size
    progress(size, whole)
    try:
        while block := _block(response):
            part.file.write(block)
            came, size = came + len(block), size + len(block)
            progress(size, whole)
            if time.monotonic() - since > patience.timeout:
                if came < patience.least:
                    raise _Interrupted(f"{came} bytes in {patience.timeout:g} s")
                since, came = time.monotonic(), 0
    finally:
        part.file.flush()
    if whole is not None and size != whole:
        raise _Interrupted(f"the connection ended after {size:,} of {whole:,} bytes")


def _block(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error)) from error


def _check(part: _Part, address: str, signature: bytes, sha256: str | None) -> None:
    """Refuses a whole file that is another one, and forgets it."""
    part.file.seek(0)
    begin = part.file.read(len(signature))
    part.file.seek(0)
    found = hashlib.file_digest(part.file, "sha256").hexdigest() if sha256 else None
    if begin != signature or found != sha256:
        part.restart(None)
        Path(part.file.name).unlink()
        part.note.unlink()
        raise DataError(
            f"{address} is not the file that was meant "
            + (f"(it begins with {begin!r})" if begin != signature else f"(its SHA-256 is {found}, not {sha256})")
            + ": a network that asks for a login answers so; try again, or fetch it by hand."
        )


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https only: a redirection to a file of this machine is not followed."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _reason(error: Exception) -> str:
    said = error.reason if isinstance(error, urllib.error.URLError) else error
    return "nothing comes" if isinstance(said, TimeoutError) else " ".join(str(said).split()) or type(said).__name__
