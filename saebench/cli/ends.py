"""How a command ends: in one line on standard error if it failed, and apart from the other ranks if there are any."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

from saebench.checks import require

REMEDIES = {
    errno.ENOSPC: "make space",
    errno.EDQUOT: "make space",
    errno.EFBIG: "make space",
    errno.EROFS: "choose another outputs folder",
}
LONGEST = 800  # letters of a message
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
    """What an error of the operating system means to a user."""
    where = f"{error.filename}: " if error.filename else ""
    remedy = REMEDIES.get(error.errno or 0, "mend that (SAEBENCH_TRACEBACK=1 shows what wanted it)")
    return (
        f"{where}{error.strerror or error}; nothing finished is lost: {remedy}, and the same command goes on from here"
    )


def end(message: str, code: int) -> NoReturn:
    """Exit with one line on standard error, which names the rank if there are several.

    Raises what is being handled instead if SAEBENCH_TRACEBACK is set.
    """
    if os.environ.get("SAEBENCH_TRACEBACK") and sys.exc_info()[1] is not None:
        raise
    rank = f" rank {os.environ.get('RANK')}:" if RANKS != "1" else ""
    line = " ".join(message.split())
    print(f"saebench:{rank} {line if len(line) <= LONGEST else line[: LONGEST - 3] + '...'}", file=sys.stderr)
    sys.exit(code)


def stopped() -> NoReturn:
    """Exit as after SIGINT."""
    end("stopped; the same command goes on from here", 130)
