"""Every message of gradindex names options as the command line does, and leaves values alone."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers import run

import gradindex
from gradindex.cli.main import main
from gradindex.cli.messages import NAMED_BARE, flags_of, with_flags

PACKAGE = Path(gradindex.__file__).parent
FLAGS = flags_of(main)
NAMES = sorted(filter(str.isidentifier, FLAGS))
# What a value in a message may look like: a path, and a quoted text with words of ours in it.
PATH, QUOTED = "/x/skip_bad=True/dim=3.png", "'a skip_bad, dim = 3 with overwrite (model=).png'"


def templates(source: str) -> Iterator[str]:
    """The texts of a source that are not docstrings, each value in them as PATH or as QUOTED.

    A value that is written with `!r` is QUOTED.
    """
    tree = ast.parse(source)
    nested = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            nested.add(node.value)  # a docstring
        if isinstance(node, ast.JoinedStr):
            nested |= {*ast.walk(node)} - {node}
    for node in ast.walk(tree):
        if node in nested:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            parts = []
            for part in node.values:
                if isinstance(part, ast.Constant):
                    parts.append(str(part.value))
                elif isinstance(part, ast.FormattedValue):
                    parts.append(QUOTED if part.conversion == ord("r") else PATH)
            yield "".join(parts)


@cache
def messages() -> list[str]:
    """All texts of several words outside the command line, which names flags itself."""
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if "cli" not in file.parts]
    texts = [text for file in files for text in templates(file.read_text(encoding="utf-8"))]
    return [text for text in texts if " " in text.strip()]


def python_names(text: str) -> list[str]:
    """The options that a text names as Python does, values left out."""
    text = text.replace(QUOTED, "").replace(PATH, "")
    forms = [r"\b{}\b" if "_" in name else r"(?<![\w-]){} ?=(?!=)" for name in NAMES]
    return [
        name for name, form in zip(NAMES, forms, strict=True) if re.search(form.format(name), text)
    ]


def test_the_messages_of_a_source_are_found() -> None:
    source = '"""No."""\ndef f(x):\n    """No."""\n    raise E(f"k = {x!r}:" f" no {x}", "a b")'
    assert {*templates(source)} == {f"k = {QUOTED}: no {PATH}", "a b"}


def test_every_message_names_options_as_on_the_command_line() -> None:
    shown = {text: with_flags(text, FLAGS) for text in messages()}
    assert {text: python_names(text) for text in shown.values() if python_names(text)} == {}
    changed = [text for text in shown if shown[text] != text]
    assert len(changed) > 40
    assert [text for text in shown if python_names(text)] != []


def test_every_message_keeps_its_values() -> None:
    for text in messages():
        shown = with_flags(text, FLAGS)
        assert shown.count(PATH) == text.count(PATH), shown
        assert shown.count(QUOTED) == text.count(QUOTED), shown


@pytest.mark.parametrize("form", NAMED_BARE)
def test_every_bare_name_stands_in_a_message(form: str) -> None:
    """An option that is a word, too, is known by its sentence, which must be one of ours."""
    assert any(re.search(form, text) for text in messages())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("say where it is with --model (model=)", "say where it is with --model"),
        ("give the prompt (prompt=), or ''", "give the prompt (--prompt), or ''"),
        ("the store's dim = 3 isn't", "the store's --dim 3 isn't"),
        ("'a dim = 3.png' and \"b's dim = 3\": dim = 4", None),
        (r"'it\'s dim = 3.png': dim = 4", None),
    ],
)
def test_forms_of_messages(text: str, shown: str | None) -> None:
    flags = {"dim": "--dim", "model": "--model", "prompt": "--prompt"}
    expected = text.removesuffix("dim = 4") + "--dim 4" if shown is None else shown
    assert with_flags(text, flags) == expected


def test_what_was_typed_stays_as_it_was_typed(tmp_path: Path) -> None:
    """In an error and in its absolute form; the option is named as a flag beside it."""
    name = "my dim = 3 with overwrite"
    done = run("info", name, cwd=tmp_path)
    assert done.stderr == f"Error: {name}: no such index; make it with `gradindex build`\n"
    flags = {"dim": "--dim", "skip_bad": "--skip-bad"}
    typed = ["build", f"--data={name}", "dim = 3", "500"]
    text = f"data /d/{name}: dim = 500, skip_bad; dim = 3"
    assert with_flags(text, flags, typed) == f"data /d/{name}: --dim 500, --skip-bad; dim = 3"


# --- the page of messages

TROUBLESHOOTING = Path(__file__).parents[2] / "docs/troubleshooting.md"


@cache
def sources() -> str:
    """All texts of gradindex, a line each, options in them as on the command line."""
    files = sorted(PACKAGE.rglob("*.py"))
    texts = {text for file in files for text in templates(file.read_text(encoding="utf-8"))}
    return "\n".join(with_flags(text, FLAGS).replace("\n", " ") for text in sorted(texts))


def unknown(message: str) -> list[str]:
    """The words of a message between its … that stand in no text of gradindex."""
    parts = [part.strip("'") for part in message.split("…") if re.search(r"\w\w", part)]
    return [part for part in parts if part not in sources()]


def test_troubleshooting_quotes_messages_of_ours() -> None:
    page = TROUBLESHOOTING.read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(messages) == len(re.findall(r"^\| (?!what you see)", page, re.MULTILINE)) > 40
    assert len({*messages}) == len(messages)
    assert {message: parts for message in messages if (parts := unknown(message))} == {}
    assert unknown("data …: no pictures here, …") != []
