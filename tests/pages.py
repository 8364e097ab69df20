"""The pages of the documentation, as their sources: blocks of code, and code within a line."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A block of code: its language as the page tells it, its text, and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """Blocks of a page in their order, all or those of a language."""
    source = page.read_text(encoding="utf-8")
    found = [
        Block(page, source.count("\n", 0, match.start()) + 1, match[2], match[3])
        for match in _FENCE.finditer(source)
    ]
    return [block for block in found if language in (None, block.language)]


def inline_code(page: Path) -> list[str]:
    """What stands between backticks within the lines of a page."""
    outside = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in _INLINE.findall(outside)]


def command_lines(block: Block) -> list[list[str]]:
    """The lines of a block for the shell as words, without comments; continued ones are joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_of_the_reader(words: list[str]) -> bool:
    """Tell whether a command is about files of the reader's own, which are written in capitals."""
    return any(re.match(r"[A-Z][A-Z_0-9]+(/|$)", word) for word in words)
