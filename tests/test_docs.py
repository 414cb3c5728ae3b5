"""Messages that the documents quote are messages of the code."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "modeling", "trainer", "serve", "cluster")
ROW = re.compile(r"^\| (`.+?`)(.*?) \|", re.MULTILINE)
# Of other programs, or of HTTP.
FOREIGN = ("CUDA out of memory", "No module named", "blocked waiting on other clients")


@functools.cache
def texts() -> tuple[str, ...]:
    """Every text of the code, what is filled in as an ellipsis."""
    return tuple(_texts())


def _texts() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def quoted() -> list[str]:
    found = [first.strip("`") for first, _ in ROW.findall((ROOT / "docs" / "troubleshooting.md").read_text())]
    return [text for text in found if not text.startswith(FOREIGN)]


def matches(quote: str, text: str) -> bool:
    """Whether a text holds the quote; an ellipsis in either stands for anything."""
    pattern = ".+".join(re.escape(piece) for piece in re.split(r"\s*…\s*", quote) if piece)
    return re.search(pattern, text, re.DOTALL) is not None


def test_the_page_holds_at_least_twenty_errors() -> None:
    assert len(quoted()) >= 20


@pytest.mark.parametrize("quote", quoted())
def test_a_quoted_message_is_one_of_the_code(quote: str) -> None:
    assert any(matches(quote, text) for text in texts())


def test_a_message_that_does_not_exist_is_noticed() -> None:
    assert not any(matches("found … of a message that nobody prints", text) for text in texts())
