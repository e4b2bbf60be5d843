"""What a link between two hosts can carry, measured with bare TCP and with Horovod.

`link.py serve PORT` on one host answers `link.py measure HOST PORT` on the other, which prints JSON;
`link.py collective FILE` is for a rank on each.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from statistics import median

_PAYLOAD = 12 * 2**20
_PINGS = 50


def serve(port: int) -> None:
    """Takes one connection: answers every ping, then the whole payload with a byte."""
    with socket.create_server(("", port)) as server, server.accept()[0] as link:
        for _ in range(_PINGS):
            link.sendall(link.recv(1))
        left = _PAYLOAD
        while left:
            left -= len(link.recv(min(left, 2**20)))
        link.sendall(b".")


def measure(host: str, port: int) -> dict[str, float]:
    """Payload bytes a second, and seconds of a round trip of one byte (median)."""
    with _connected(host, port) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(_PINGS):
            started = time.perf_counter()
            link.sendall(b".")
            link.recv(1)
            trips.append(time.perf_counter() - started)
        started = time.perf_counter()
        link.sendall(bytes(_PAYLOAD))
        link.recv(1)
        return {"rate": _PAYLOAD / (time.perf_counter() - started), "round_trip": median(trips)}


def collective(file: Path) -> None:
    """Writes the median seconds of an allreduce of one number, on ranks that do nothing else."""
    import horovod.torch as hvd
    import torch

    hvd.init()
    times = []
    for _ in range(_PINGS):
        hvd.allreduce(torch.zeros(1), name="together")
        started = time.perf_counter()
        hvd.allreduce(torch.zeros(1), name="one number")
        times.append(time.perf_counter() - started)
    if hvd.rank() == 0:
        file.write_text(str(median(times)))
    hvd.shutdown()


def _connected(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + 20.0
    while True:
        try:
            return socket.create_connection((host, port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            serve(int(port))
        case ["measure", host, port]:
            print(json.dumps(measure(host, int(port))))
        case ["collective", file]:
            collective(Path(file))
        case _:
            sys.exit(__doc__)
