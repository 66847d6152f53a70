"""Messages to stderr; data goes to stdout."""

import sys
from typing import NoReturn

import click


def say(text: str) -> None:
    """Print a text to stderr."""
    click.echo(text, err=True)


def fail(text: str, status: int) -> NoReturn:
    """Print an error as one line to stderr and exit with a status."""
    say(f"Error: {' '.join(text.split())}")
    sys.exit(status)
