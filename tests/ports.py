"""Ports for servers that a test stops and starts again at the same address."""

import random
import socket
from pathlib import Path

_LOWEST = 10_240


def free_port() -> int:
    """Return a port of the loopback that no outgoing connection gets while its server is down.

    A port of the ephemeral range would sometimes be taken by another test's connection before its server is back, and
    a client that tries it again and again would at last be connected to itself.
    """
    ephemeral_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1_000):
        port = random.randrange(_LOWEST, max(ephemeral_from, _LOWEST + 1))
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no port is free")
