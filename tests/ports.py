"""A TCP port for a server that a test starts."""

import socket


def free_port() -> int:
    """A port of the loopback interface on which nothing listens right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
