"""A way to a server that can break: refuses the first requests of a kind, and can be cut while it is used."""

import socket
import threading
from contextlib import suppress

CHUNK = 65_536


class FlakyProxy:
    """Listens on a port of its own and hands on to another.

    Args:
        port: the server's.
        refused: how many requests that begin with `beginning` are answered with `answer` instead.
    """

    def __init__(self, port: int, *, refused: int = 0, beginning: bytes = b"", answer: bytes = b"") -> None:
        self._upstream, self._refused, self._beginning, self._answer = port, refused, beginning, answer
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def refusals_left(self) -> int:
        """How many requests are still to be refused."""
        return self._refused

    def cut(self) -> None:
        """Break every connection that is open now."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listen no longer."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            first = client.recv(CHUNK)
            if self._refused and first.startswith(self._beginning):
                self._refused -= 1
                _read_body(client, first)
                head = f"HTTP/1.1 500 Refused\r\nContent-Length: {len(self._answer)}\r\nConnection: close\r\n\r\n"
                client.sendall(head.encode() + self._answer)
                return
            with socket.create_connection(("127.0.0.1", self._upstream)) as server:
                self._open |= {client, server}
                server.sendall(first)
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()
                self._open -= {client, server}


def _read_body(client: socket.socket, first: bytes) -> None:
    """Read a request to its end: who is answered and cut off while still sending sees no answer."""
    head, _, body = first.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    missing = sum(map(int, lengths)) - len(body)
    while missing > 0:
        missing -= len(client.recv(CHUNK))


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
