"""The commands of README.md and docs/: their fenced bash blocks, run page by page by a real bash that hands each command over.

bash does what bash does (variables, quotes, pipes, line continuation, here-documents); the commands in HANDED are functions that
send their arguments to the test and print its answer, and nothing else but PLAIN can be run.

A block that cannot run on the embedded model has a comment before it, which readers of the page do not see:
`<!-- needs: REASON -->`, a key of REASONS, or `<!-- needs: REASON, for TEXT -->` if it is of the lines with TEXT alone.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from subprocess import DEVNULL, PIPE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HANDED = ("saebench", "torchrun", "make", "pip", "python", "hf")
PLAIN = ("cat", "cp", "head", "ls", "mkdir", "tail")
REASONS = {
    "cluster": "a SLURM cluster",
    "gpu": "GPUs",
    "hub": "a model or data set of the hub",
    "judge": "an LLM that is asked",
    "model": "a real model's weights",
    "network": "the network, for packages or files",
    "extra": "a package that tests do not install",
    "time": "minutes, or a person in front of it",
}
BLOCK = ":block"  # announces a block
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"<!-- needs: (\w+)(?:, for (.+?))? -->\n")
MARKERS = re.compile(r"(?:<!-- [^\n]* -->\n)*\Z")
PRELUDE = """\
set -euo pipefail
PATH=/nowhere
ask() {
  printf '%s\\0' $# "$@" >&"$ASK"
  local code text
  IFS= read -r -d '' code <&"$TOLD"
  IFS= read -r -d '' text <&"$TOLD"
  printf '%s' "$text"
  return "$code"
}
"""


@dataclass(frozen=True)
class Block:
    """A fenced bash block: its page and line, its text, and why which of its lines cannot run here: (REASON, TEXT or "")."""

    page: Path
    line: int
    text: str
    needs: tuple[tuple[str, str], ...]

    def needed(self, command: list[str]) -> list[str]:
        """What a command of the block needs."""
        return [reason for reason, text in self.needs if text in " ".join(command)]


@dataclass(frozen=True)
class Asked:
    """A command as bash has expanded it, with its block."""

    block: Block
    argv: list[str]

    def __str__(self) -> str:
        return f"{self.block.page.name}:{self.block.line}: {' '.join(self.argv)}"


Answer = tuple[int, str]  # exit code, standard output


def blocks(page: Path, language: str = "bash") -> list[Block]:
    """The blocks of a page in a language. Raises AssertionError for a marker with a reason that is none."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match[1] == language:
            before = MARKERS.search(text[: match.start()])
            assert before is not None
            needs = tuple((reason, of or "") for reason, of in NEEDS.findall(before[0]))
            assert before[0].count("needs") == len(needs), f"{page}: {before[0]} is not <!-- needs: REASON -->"
            assert {why for why, _ in needs} <= {*REASONS}, f"{page}: {before[0]}: reasons are {', '.join(REASONS)}"
            found.append(Block(page, text[: match.start()].count("\n") + 1, match[2], needs))
    return found


def elsewhere(page: Path) -> Iterator[str]:
    """Lines of the page's other code blocks, fenced or indented, that look like commands."""
    text = page.read_text(encoding="utf-8")
    others = [match[2] for match in FENCE.finditer(text) if match[1] != "bash"]
    indented = re.findall(r"^(?: {4}|\t).*$", FENCE.sub("", text), re.MULTILINE)
    for line in "\n".join([*others, *indented]).splitlines():
        if re.match(r"\s*(\$ )?(saebench|torchrun|make|pip) \S", line):
            yield line


def inline(page: Path) -> Iterator[str]:
    """The code spans of a page that begin with saebench and a word."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (span.replace("\n", " ") for span in re.findall(r"`(saebench [a-z][^`]*)`", text))


def edits(page: Path) -> Iterator[tuple[str, str]]:
    """The files that a page changes or makes: path and text of its blocks with title="PATH"."""
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]+)"', match[1])
        if title:
            yield title[1], match[2]


def run_page(page: Path, folder: Path, answer: Callable[[Asked], Answer]) -> None:
    """Run a page's bash blocks in turn in `folder`, each command answered by `answer`. Raises AssertionError if bash fails."""
    found = blocks(page)
    asks, ask = os.pipe()
    told, tell = os.pipe()
    command = ["bash", "--noprofile", "--norc", "-c", script_of(found)]
    env = {"ASK": str(ask), "TOLD": str(told), "HOME": str(folder)}
    with (
        subprocess.Popen(command, cwd=folder, env=env, pass_fds=(ask, told), stdout=DEVNULL, stderr=PIPE) as bash,
        os.fdopen(asks, "rb") as questions,
        os.fdopen(tell, "wb", buffering=0) as answers,
    ):
        os.close(ask)
        os.close(told)
        at = None
        for words in commands(questions):
            if words[0] == BLOCK:
                at, (code, text) = found[int(words[1])], (0, "")
            else:
                assert at is not None
                code, text = answer(Asked(at, words))
            answers.write(f"{code}\0{text}\0".encode())
        assert bash.stderr is not None
        error = bash.stderr.read().decode()
    assert bash.returncode == 0, f"{page.name}, in the block at line {at.line if at else 0}: {error}"


def script_of(found: list[Block]) -> str:
    """What bash is given: the functions, then the blocks, each announced by its number."""
    functions = [f'{name}() {{ ask {name} "$@"; }}' for name in HANDED]
    functions += [f'{name}() {{ command -p {name} "$@"; }}' for name in PLAIN]
    return "\n".join([PRELUDE, *functions, *(f"ask {BLOCK} {i}\n{block.text}" for i, block in enumerate(found))])


def commands(file: BufferedReader) -> Iterator[list[str]]:
    """The commands that come through a pipe until it is closed: a count, and so many words, each ended by a zero byte."""
    words = split_words(file)
    for count in words:
        yield [next(words) for _ in range(int(count))]


def split_words(file: BufferedReader) -> Iterator[str]:
    """The words that come through a pipe."""
    rest = b""
    while data := file.read1(1 << 16):
        *whole, rest = (rest + data).split(b"\0")
        yield from (word.decode() for word in whole)
