"""Names of pictures for people: a name may hold line feeds, tabs and what controls a terminal."""

import unicodedata

# Categories of Unicode: control characters, line and paragraph separators, and surrogates, which
# stand for bytes of a name that are not UTF-8.
ESCAPED = ("Cc", "Zl", "Zp", "Cs")


def printable(name: str) -> str:
    r"""Return a name on one line, with escapes for what would break the line or the terminal.

    >>> printable("cat\n7\t.png"), printable("é 7.png")
    ('cat\\n7\\t.png', 'é 7.png')
    """
    return "".join(_escape(character) for character in name)


def _escape(character: str) -> str:
    """A character as it is, or its escape."""
    if unicodedata.category(character) in ESCAPED:
        return character.encode("unicode_escape").decode()
    return character


def one_line(text: str) -> str:
    r"""Return a text, which may be of several lines, as one line of printable characters.

    >>> one_line("cannot be read:\n  no such\x1bfile ")
    'cannot be read: no such\\x1bfile'
    """
    return printable(" ".join(line.strip() for line in text.strip().splitlines()))
