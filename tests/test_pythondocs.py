"""The built-in text: substantial, without repeats, and the same every time."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from saebench import pythondocs
from saebench.checks import InputError
from saebench.pythondocs import MIN_CHARS, MIN_REPEAT, docstrings, documents, fingerprint, normalised, without_repeats

SOURCE = '''
"""Module."""
class A:
    """Class A."""
    if True:
        def f(self):
            """Method f."""
            class Inner:
                """Inner."""
    def plain(self): ...
try:
    pass
except ImportError as error:
    async def g():
        """Function g."""
'''


@pytest.fixture(scope="module")
def docs() -> list[str]:
    return documents()


def test_there_is_a_substantial_text(docs: list[str]) -> None:
    assert len(docs) > 300
    assert sum(map(len, docs)) > 1_500_000
    assert min(map(len, docs)) >= MIN_CHARS


def test_topics_and_modules_are_both_there(docs: list[str]) -> None:
    assert any('The "if" statement' in document for document in docs)
    assert any(document.startswith("textwrap\nText wrapping and filling.") for document in docs)


def test_no_paragraph_stands_in_two_documents(docs: list[str]) -> None:
    paragraphs = [{normalised(part) for part in document.split("\n\n")} for document in docs]
    times = Counter(part for parts in paragraphs for part in parts if len(part) >= MIN_REPEAT)
    assert [part for part, n in times.items() if n > 1] == []


def test_another_process_finds_the_same_text_without_a_warning(docs: list[str]) -> None:
    code = "from saebench.pythondocs import documents, fingerprint; print(fingerprint(documents()))"
    env = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-OO", "-c", code]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == fingerprint(docs)
    assert answer.stderr == ""


def test_a_library_without_source_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythondocs.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(InputError, match="no library source"):
        documents()


def test_docstrings_have_their_qualified_names_in_source_order() -> None:
    names = [("m", "Module."), ("m.A", "Class A."), ("m.A.f", "Method f."), ("m.A.f.Inner", "Inner.")]
    assert list(docstrings(ast.parse(SOURCE), "m")) == [*names, ("m.g", "Function g.")]


def test_repeats_are_left_out() -> None:
    long, other = "a sentence that is longer than forty characters", "another sentence longer than forty characters"
    seen: set[str] = set()
    assert without_repeats(f"Note:\n\n{long}", seen) == f"Note:\n\n{long}"
    assert without_repeats(f"Note:\n\n{long.replace(' ', '  ')}\n\n{other}", seen) == f"Note:\n\n{other}"
    assert without_repeats("Close it.", seen) == "Close it."
    assert without_repeats("Close it.", seen) == ""


def test_the_fingerprint_tells_documents_apart() -> None:
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])
    prints = {fingerprint(texts) for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [])}
    assert len(prints) == 5
