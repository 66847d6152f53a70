"""A bucket on this machine, held by moto's server, whose answers fail when they are told to."""

import io
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np

BUCKET = "pictures"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
READ_SECONDS = 1.0  # that a command waits for an answer
SILENT_SECONDS = 2.0  # that a request gets none
# With its defaults botocore tries a request 5 times, and s3fs that 25 times, which takes minutes.
BOTOCORE_TRIES, S3FS_TRIES = 2, 2

SILENCE, LOSS = "no answer", "lost connection"
# {what a failing request gets: HTTP status and code, if it gets any}
FAULTS: dict[str, tuple[str, str] | None] = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Service Unavailable", "SlowDown"),
    LOSS: None,
    SILENCE: None,
}
PERFORMED_SHARE = 0.5  # of the failing requests whose work is done all the same


@dataclass
class Trouble:
    """Which requests fail, and how.

    Attributes:
        fault: a key of FAULTS.
        share: of the requests that fail at random. after: requests that are answered before any.
        random: what they draw from.
    """

    fault: str
    share: float
    after: int
    random: np.random.Generator


class FaultyBucket:
    """A bucket of S3, which is served while it is open.

    Attributes:
        endpoint: the server's URL. requests: how many were answered or failed so far.
        trouble: which of them fail; None: none.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it tells of every request
        self._answer = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._serve, threaded=True, request_handler=MotoRequestHandler
        )
        self._lock = Lock()
        self.trouble: Trouble | None = None
        self.requests = 0
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._client = self._connect()
        self._client.create_bucket(Bucket=BUCKET)

    def close(self) -> None:
        """Serve no longer."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, index: str) -> str:
        """Return the URL of an index in it."""
        return f"s3://{BUCKET}/{index}"

    @contextmanager
    def failing(self, trouble: Trouble) -> Iterator[None]:
        """Let requests fail meanwhile."""
        self.requests = 0
        self.trouble = trouble
        try:
            yield
        finally:
            self.trouble = None

    def upload(self, folder: Path | None, index: str) -> None:
        """Let an index have the files of a folder, and no others."""
        for key in self._keys(index):
            self._client.delete_object(Bucket=BUCKET, Key=key)
        for file in folder.rglob("*") if folder else ():
            if file.is_file():
                key = f"{index}/{file.relative_to(folder).as_posix()}"
                self._client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())

    def download(self, index: str, folder: Path) -> None:
        """Write the files of an index into a new folder; none where it has none."""
        for key in self._keys(index):
            file = folder / key.removeprefix(f"{index}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            answer = self._client.get_object(Bucket=BUCKET, Key=key)
            file.write_bytes(answer["Body"].read())

    def _keys(self, index: str) -> list[str]:
        """The keys of an index's objects."""
        answer = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{index}/")
        assert not answer["IsTruncated"]
        return [item["Key"] for item in answer.get("Contents", ())]

    def _connect(self) -> Any:
        """A client of this process."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        )

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request as moto does, or fail it."""
        # What is left unread would be taken for the next request.
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            trouble = self.trouble
            self.requests += 1
            fails = trouble is not None and _fails(trouble, self.requests)
            performed = fails and trouble.random.random() < PERFORMED_SHARE
        if not fails:
            return self._answer(environ, start_response)
        if performed:
            list(self._answer(environ, lambda *arguments: None))
        return _fail(trouble.fault, environ, start_response)


def _fails(trouble: Trouble, request: int) -> bool:
    """Whether the request of that number fails."""
    return request > trouble.after and trouble.random.random() < trouble.share


def _fail(fault: str, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer with an error, or break the connection."""
    answer = FAULTS[fault]
    if answer is not None:
        status, code = answer
        body = f"<Error><Code>{code}</Code><Message>{status}</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
    if fault == SILENCE:
        time.sleep(SILENT_SECONDS)
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError(fault)


def use_bucket(endpoint: str, cache: Path) -> None:
    """Let this process find a bucket's server, and wait for it a short time only.

    Not for the minutes that the defaults of its client add up to.

    Args:
        cache: the folder of what it fetches.
    """
    import fsspec
    from s3fs import S3FileSystem

    os.environ.update(
        CREDENTIALS,
        AWS_ENDPOINT_URL=endpoint,
        AWS_MAX_ATTEMPTS=str(BOTOCORE_TRIES),
        XDG_CACHE_HOME=str(cache),
    )
    S3FileSystem.retries = S3FS_TRIES
    fsspec.config.conf["s3"] = {"config_kwargs": {"read_timeout": READ_SECONDS}}
