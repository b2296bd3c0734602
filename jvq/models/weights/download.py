"""Fetching: from a ``Remote`` to a folder that holds its files, each of them whole and checked, or none.

While a file is on its way it is ``NAME.part``, beside it ``NAME.part.json`` with the server's ETag, so that a later run
goes on where this one stopped. It takes its name only when size and checksum are right. Environment: JVQ_CACHE (the
folder, else ``jvq`` in XDG_CACHE_HOME or ~/.cache), JVQ_OFFLINE or HF_HUB_OFFLINE (stay off the network), HF_TOKEN
(sent to huggingface.co alone), and the proxies and certificates that urllib reads.
"""

import base64
import binascii
import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import io
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from jvq.core import files
from jvq.models.weights.names import HUGGING_FACE, Remote, RemoteFile, suggestion
from jvq.progress import Bar

CHUNK = 1 << 20  # bytes
Progress = Callable[[str, int, int | None], None]  #: filename, bytes so far, bytes in all if known


@dataclasses.dataclass(frozen=True)
class Network:
    """How patient to be with a server, and which one may see the token."""

    timeout: float = 30.0  # seconds without a byte
    tries: int = 4  # in a row that brought nothing new
    pause: float = 1.0  # seconds before the second try; doubled before each further one
    token_origin: str = HUGGING_FACE


@dataclasses.dataclass(frozen=True)
class _Expected:
    """What a file must be like, as far as the name table or the servers say."""

    size: int | None  # bytes
    digests: dict[str, str]  # "sha256" or "md5" to hexadecimal


class _Failed(Exception):
    """Why there is no file."""


class _Absent(_Failed):
    """The server has no such file."""


class _Unwritable(_Failed):
    """The cache's disk, not the network."""


class _Again(Exception):
    """What another try may mend."""


def fetch(
    remote: Remote, *, cache: Path | None = None, progress: Progress | None = None, network: Network | None = None
) -> Path:
    """The folder that holds the remote's files; nothing is sent where they are there already.

    ``cache`` is another folder than JVQ_CACHE; without ``progress`` a bar is drawn if stderr is a terminal.
    ``ValueError`` is one line: which file, why, its address, and the folder where to put it by hand.
    """
    folder = folder_of(remote, cache)
    try:
        with _disk(folder):
            if complete(remote, folder):
                return folder
            _stay_online(remote, folder)
        with _locked(folder), _shown(progress) as tell:
            client = _Client(network or Network())
            for file in remote.files:
                if not _there(file, remote, folder):
                    _one_of(remote, file, folder, tell, client)
    except _Unwritable as error:
        raise ValueError(f"weights: '{remote.name}': {error}; set JVQ_CACHE to another folder") from None
    return folder


def folder_of(remote: Remote, cache: Path | None = None) -> Path:
    """Where the remote's files are, or would be."""
    return (files.cache() if cache is None else cache) / "weights" / remote.folder


def complete(remote: Remote, folder: Path) -> bool:
    """Whether every file that is needed is in the folder; by whom it was put there does not matter."""
    return all(file.optional or _there(file, remote, folder) for file in remote.files)


def _there(file: RemoteFile, remote: Remote, folder: Path) -> bool:
    """Whether the file, or one that stands in for it or that it stands in for, is in the folder."""
    group = [f for f in remote.files if f == file or f.instead_of == file.filename or f.filename == file.instead_of]
    paths = [(folder / f.filename, f.size) for f in group]
    return any(path.is_file() and size in (None, path.stat().st_size) for path, size in paths)


def _one_of(remote: Remote, file: RemoteFile, folder: Path, tell: Progress, client: "_Client") -> None:
    """Downloads the file, unless the server lacks it and it can be done without."""
    try:
        _download(file, folder, tell, client)
    except _Unwritable:
        raise
    except _Failed as error:
        can_do_without = file.optional or any(f.instead_of == file.filename for f in remote.files)
        if not (isinstance(error, _Absent) and can_do_without):
            raise ValueError(_line(remote, file, folder, str(error))) from None


def _line(remote: Remote, file: RemoteFile, folder: Path, why: str) -> str:
    nor = f" (nor is there {file.instead_of})" if file.instead_of else ""
    return (
        f"weights: '{remote.name}': {file.filename}{nor}: {why}; address: {file.url}; "
        f"to put it there by hand: {folder}{suggestion(remote.name)}"
    )


def _stay_online(remote: Remote, folder: Path) -> None:
    """Nothing; ``ValueError`` where the environment forbids the network, for the first file that lacks."""
    for variable in ("JVQ_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").lower() in ("1", "on", "true", "yes"):
            lacks = next(f for f in remote.files if not f.optional and not _there(f, remote, folder))
            raise ValueError(_line(remote, lacks, folder, f"not in the cache, and {variable} is set"))


# --- one file -------------------------------------------------------------------------------------------------------


def _download(file: RemoteFile, folder: Path, tell: Progress, client: "_Client") -> None:
    """Puts the file into the folder, in as many tries as bring something new and a few more."""
    part = folder / f"{file.filename}.part"
    furthest, idle = _size(part), 0
    while True:
        try:
            expected = _attempt(file, part, tell, client)
            break
        except _Again as error:
            idle = 1 if _size(part) > furthest else idle + 1
            furthest = max(furthest, _size(part))
            if idle >= client.network.tries:
                raise _Failed(f"{error}, after {idle} tries") from None
            time.sleep(client.network.pause * 2 ** (idle - 1))
    _check(part, expected)
    with _disk(folder):
        os.replace(part, folder / file.filename)
        _note(part).unlink(missing_ok=True)
        files.sync(folder)


def _attempt(file: RemoteFile, part: Path, tell: Progress, client: "_Client") -> _Expected:
    """What the file must be like, once all of it is in ``part``."""
    with _network_errors(part), contextlib.ExitStack() as stack:
        response = stack.enter_context(client.rest(file.url, part))
        start = _start(response, part)
        expected = _expected(file, [*client.hops, response.headers], _total(response, start))
        if start == 0:
            _remember(part, response.headers.get("ETag", ""))
        with _disk(part):  # unbuffered: what has come is on the disk, whatever happens next
            opener = lambda name, how: os.open(name, how | os.O_NOFOLLOW, 0o666)  # noqa: E731 (a link leads elsewhere)
            out = stack.enter_context(io.FileIO(part, "ab" if start else "wb", opener=opener))
        _pour(response, out, start, expected.size, lambda done: tell(file.filename, done, expected.size))
    return expected


class _Client(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeps their headers, and shows the token to its own origin only."""

    def __init__(self, network: Network):
        self.network = network
        self.hops: list[Message] = []  # headers of the redirects on the way to the last response
        self.opener = urllib.request.build_opener(self)

    def rest(self, url: str, part: Path) -> http.client.HTTPResponse:
        """The response: what the part lacks where the file is the same as before, else the whole."""
        request = urllib.request.Request(url, headers={"User-Agent": "jvq"})
        have, etag = _size(part), _etag(part)
        if have and etag:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", etag)
        self.hops.clear()
        self.authorise(request)
        return self.opener.open(request, timeout=self.network.timeout)

    def authorise(self, request: urllib.request.Request) -> None:
        token, url = os.environ.get("HF_TOKEN", "").strip(), urlsplit(request.full_url)
        if token and f"{url.scheme}://{url.netloc}" == self.network.token_origin:
            if not re.fullmatch("[!-~]+", token):  # http.client would print it
                raise _Failed("HF_TOKEN holds more than a token: blanks, or letters outside of ASCII")
            request.add_unredirected_header("Authorization", f"Bearer {token}")

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.hops.append(headers)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self.authorise(request)
        return request


@contextlib.contextmanager
def _network_errors(part: Path) -> Iterator[None]:
    """Turns what urllib raises into what can be mended and what cannot."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        why = f"{error.code} {error.reason}"
        if error.code in (404, 410):
            raise _Absent(why) from None
        if error.code in (401, 403):
            token = "is set" if os.environ.get("HF_TOKEN", "").strip() else "is not set"
            raise _Failed(f"{why} (no such name, or not open to you; HF_TOKEN {token})") from None
        if error.code == 416:  # what we have is longer than the file
            _forget(part)
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _Again(why) from None
        raise _Failed(why) from None
    except urllib.error.URLError as error:
        final = isinstance(error.reason, socket.gaierror | ssl.SSLCertVerificationError)
        raise (_Failed if final else _Again)(f"no connection ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"the connection broke ({str(error) or type(error).__name__})") from None


def _start(response: http.client.HTTPResponse, part: Path) -> int:
    """The byte at which the response begins: 0 where the server sends the whole."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != _size(part):
        _forget(part)
        raise _Again(f"the server sent another part ({response.headers.get('Content-Range')})")
    return int(found[1])


def _total(response: http.client.HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file, by the response's headers; ``_Failed`` where they tell of something else."""
    if response.headers.get_content_type() == "text/html" and response.headers.get("Content-Type"):
        raise _Failed("a web page came instead of the file (a proxy's, or one to log in)")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _Failed(f"it came as {response.headers['Content-Encoding']}, unasked")
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else None


def _expected(file: RemoteFile, headers: list[Message], total: int | None) -> _Expected:
    """What the file must be like: the name table's word before the servers'.

    Hugging Face says size and sha256 on the redirect to its storage, never there; Google the md5, in base64, unless the
    object was put together on the server: then there is a crc32c alone, which is not read.
    """
    size, digests = None, {}
    for header in headers:
        linked = header.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", linked):
            digests["sha256"] = linked
        if header.get("X-Linked-Size", "").isdecimal():
            size = int(header["X-Linked-Size"])
        for text in ",".join(header.get_all("x-goog-hash", [])).split(","):
            if text.strip().startswith("md5="):
                with contextlib.suppress(binascii.Error):
                    digests["md5"] = base64.b64decode(text.strip()[4:]).hex()
    if file.sha256:
        digests["sha256"] = file.sha256
    size = file.size if file.size is not None else size
    if None not in (size, total) and size != total:
        raise _Failed(f"the server has {total} bytes, expected {size}")
    return _Expected(total if size is None else size, digests)


def _pour(
    response: http.client.HTTPResponse, out: io.FileIO, start: int, size: int | None, tell: Callable[[int], None]
) -> None:
    """Writes the response's bytes; ``_Again`` where it ends early, with all that came on the disk."""
    done = start
    tell(done)
    while size is None or done < size:
        data = memoryview(response.read1(CHUNK if size is None else min(CHUNK, size - done)))
        if not data:
            break
        done += len(data)
        with _disk(Path(out.name)):
            while data:
                data = data[out.write(data) :]
        tell(done)
    with _disk(Path(out.name)):
        os.fsync(out.fileno())
    if size is not None and done < size:
        raise _Again(f"the connection broke after {done} of {size} bytes")


def _check(part: Path, expected: _Expected) -> None:
    """Nothing; a part that is not what was expected is deleted."""
    for algorithm, wanted in expected.digests.items():
        with _disk(part), part.open("rb") as f:
            got = hashlib.file_digest(f, algorithm).hexdigest()
        if got != wanted:
            _forget(part)
            raise _Failed(f"{algorithm} is {got}, expected {wanted}; what came was deleted")


# --- the part file and its note -------------------------------------------------------------------------------------


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _etag(part: Path) -> str:
    """The ETag that the part was begun under; empty where there is none to rely on."""
    try:
        etag = json.loads(_note(part).read_text())["etag"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return etag if isinstance(etag, str) else ""


def _remember(part: Path, etag: str) -> None:
    """Notes the ETag for a later run. A weak one does not promise the same bytes, so it is left out."""
    with _disk(part):
        part.unlink(missing_ok=True)  # first: an old part must never stand beside a new note
        _note(part).write_text(json.dumps({"etag": "" if etag.startswith("W/") else etag}))


def _forget(part: Path) -> None:
    with _disk(part):
        part.unlink(missing_ok=True)
        _note(part).unlink(missing_ok=True)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unwritable(f"{path} cannot be used: {error.strerror or error}") from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for one process alone, others wait; the kernel unlocks it however the process ends."""
    with contextlib.ExitStack() as stack:
        with _disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / ".lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _shown(progress: Progress | None) -> Iterator[Progress]:
    """What to tell of each chunk: the given callback, else a bar for each file."""
    if progress is not None:
        yield progress
        return
    with contextlib.ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def tell(filename: str, done: int, total: int | None) -> None:
            if filename not in bars:
                bars[filename] = stack.enter_context(Bar(Console(stderr=True), filename, total, in_bytes=True))
            bars[filename].at(done, total=total)

        yield tell
