"""How a command ends: in one line on standard error if it failed, and apart from the other ranks if there are any."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

from saebench.checks import require

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
RANKS = os.environ.get("WORLD_SIZE", "1")
TOGETHER = ("train", "sweep", "cache", "evaluate")  # what several ranks do together, started by torchrun


def check_ranks(command: str | None) -> None:
    """Raise InputError if several ranks run a command that is one process's."""
    alone = RANKS != "1" and command not in TOGETHER
    require(
        not alone, f"WORLD_SIZE={RANKS}: only {', '.join(TOGETHER)} run on several ranks; start it without torchrun"
    )


def part(result: object, version: bool) -> None:
    """After a command that went well, part from the other ranks; the arguments are Typer's."""
    if RANKS != "1":
        from saebench.parallel import leave

        leave()


def told(error: OSError) -> str:
    """What a disk that takes no more means."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; nothing finished is lost: make space, and the same command goes on from here"


def end(message: str, code: int) -> NoReturn:
    """Exit with one line on standard error, which names the rank if there are several."""
    rank = f" rank {os.environ.get('RANK')}:" if RANKS != "1" else ""
    print(f"saebench:{rank} {message}", file=sys.stderr)
    sys.exit(code)


def stopped() -> NoReturn:
    """Exit as after SIGINT."""
    end("stopped; the same command goes on from here", 130)
