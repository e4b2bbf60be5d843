"""Someone who reaches the sockets of a job and does not know its secret."""

from __future__ import annotations

import base64
import pickle
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
from hypothesis import strategies as st

PATHS = (
    "/global/0",
    "/worker_addresses/localhost:0",
    "/rank_and_size/localhost:0",
    "/runfunc/func",
    "/kept/0",
)
HEADERS = ("X-Horovod-Nonce", "X-Horovod-Body", "X-Horovod-Proof", "Content-Length", "Transfer-Encoding")


class Touch:
    """Unpickled, it makes a file: what a stranger's code would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def request(method: str, path: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """The bytes of an HTTP request, with whatever headers."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if not any(name == "Content-Length" for name, _ in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def send(address: tuple[str, int], said: bytes, listens_s: float = 20.0) -> bytes:
    """Says something, and gives the answer; nothing where the connection is cut."""
    answer = b""
    with suppress(ConnectionError), socket.create_connection(address, 20) as link:
        link.settimeout(listens_s)
        link.sendall(said)
        with suppress(ConnectionError):
            link.shutdown(socket.SHUT_WR)
            while piece := link.recv(65536):
                answer += piece
    return answer


def dribble(address: tuple[str, int], said: bytes) -> socket.socket:
    """Says the beginning of something, and leaves the rest unsaid."""
    link = socket.create_connection(address, 20)
    link.sendall(said)
    return link


def payload(marker: Path) -> bytes:
    """What Horovod's elastic server unpickled, and ran."""
    return base64.b64encode(pickle.dumps((Touch(marker), b"key")))


def message(marker: Path, length: int | None = None) -> bytes:
    """What Horovod's services unpickle where the digest is right; here it is not."""
    pickled = pickle.dumps(Touch(marker))
    return b"\0" * 32 + struct.pack("i", len(pickled) if length is None else length) + pickled


def listening(root: psutil.Process) -> dict[tuple[str, int], int]:
    """Every address where the process or a descendant listens, with the process."""
    found = {}
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            for link in process.net_connections("inet"):
                if link.status == psutil.CONN_LISTEN:
                    found[(link.laddr.ip, link.laddr.port)] = process.pid
    return found


def requests() -> st.SearchStrategy[bytes]:
    """HTTP requests with forged, missing and odd headers."""
    hexadecimal = st.text("0123456789abcdef", min_size=0, max_size=70)
    text = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
    headers = st.lists(st.tuples(st.sampled_from(HEADERS), hexadecimal | text), max_size=6)
    forged = st.tuples(
        *(
            st.tuples(st.just(name), st.text("0123456789abcdef", min_size=size, max_size=size))
            for name, size in zip(HEADERS[:3], (32, 64, 64), strict=True)
        )
    ).map(list)
    methods = st.sampled_from(("GET", "PUT", "DELETE", "HEAD", "POST", "OPTIONS", "PATCH"))
    return st.builds(request, methods, st.sampled_from(PATHS), st.binary(max_size=300), headers | forged)
