"""A port of this machine, and the server that answers there."""

import os
import socket
from typing import Any

import uvicorn

from gradindex.errors import CallError

MOST_CONNECTIONS = 200
BACKLOG = 128  # connections that wait until they are taken
GRACE_SECONDS = 5  # for answers that are on their way when the server is stopped


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; whoever connects from now on waits for an answer.

    Args:
        port: 0: any that is free.

    Raises:
        CallError: the address is not this machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason: object = getattr(error, "strerror", None) or error
        if isinstance(error, OSError) and error.errno and error.errno > 0:
            reason = os.strerror(error.errno)  # without Python's own words beside it
        raise CallError(
            f"host = {host}, port = {port}: cannot listen there ({reason}); give another port,"
            " or 0 for any that is free"
        ) from error


def address_of(listening: socket.socket, host: str) -> str:
    """Return the URL of a server, by the host that it was bound to.

    >>> with listen("127.0.0.1", 0) as listening:
    ...     address_of(listening, "127.0.0.1").rpartition(":")[0]
    'http://127.0.0.1'
    """
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def run(app: Any, listening: socket.socket) -> None:
    """Answer until the process is interrupted."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])
