"""The command that serves indexes over HTTP."""

from contextlib import suppress

import click

from gradindex.cli.messages import say
from gradindex.cli.opening import open_index
from gradindex.cli.options import ADAPTERS, DATA, DEVICE, MODEL, PATH
from gradindex.errors import MissingPackage
from gradindex.store.memory import keep_freed_memory


@click.command(short_help="Answer queries in a browser, and as JSON over HTTP.")
@click.argument("indexes", nargs=-1, type=PATH, required=True, metavar="INDEX...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0 for any that is free.",
)
@click.option(
    "--token",
    envvar="GRADINDEX_TOKEN",
    show_envvar=True,
    help="That every request must have, as Authorization: Bearer, or once as ?token= in a browser.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Another name by which the server is reached, as behind a proxy.",
)
@click.option(
    "--embedding",
    type=PATH,
    metavar="MODEL",
    help="Also the nearest by it: a vision model such as CLIP or DINOv2 (folder or hub name), whose"
    " vectors INDEX keeps.",
)
@MODEL
@ADAPTERS
@DATA
@DEVICE
def serve(
    indexes: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    hosts: tuple[str, ...],
    embedding: str | None,
    model: str | None,
    adapters: tuple[str, ...],
    data: str | None,
    device: str,
) -> None:
    """Answer queries to each INDEX in a browser, and as JSON over HTTP.

    The first line of stdout is the address to open.
    """
    try:
        from gradindex.serve.app import make_app
        from gradindex.serve.listening import address_of, listen, run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gradindex"):
            raise
        raise MissingPackage(
            f"{error.name} is not installed: pip install 'gradindex[serve]'"
        ) from error
    from gradindex.serve.guard import LOOPBACK

    if len(indexes) > 1 and (model or adapters or data):
        raise click.UsageError("--model, --adapter and --data are of one INDEX; serve it alone")
    if token is not None and not token.strip():
        raise click.BadParameter("'': give some letters, or leave it out", param_hint="--token")
    keep_freed_memory()
    opened = []
    for path in indexes:
        index = open_index(path, model=model, device=device, adapters=adapters, data=data)
        _ = index.gradients.checkpoints  # raises now where the model is gone, or another one
        if embedding is not None:
            index.embeddings.load(embedding)
        opened.append(index)
    app = make_app(opened, indexes, embedding, host=host, hosts=hosts, token=token)
    with listen(host, port) as listening:
        address = address_of(listening, host)
        click.echo(address)
        if token is not None:
            say(f"open {address}/?token=TOKEN with the token in place of TOKEN")
        elif host not in LOOPBACK:
            say("everyone who reaches this machine can ask and see its pictures; give --token")
        with suppress(KeyboardInterrupt):
            run(app, listening)
