"""Progress of everything a person waits for: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import Self

from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between plain lines
hushed = False


class Progress:
    """A counter towards `total` in `unit`s, shown on standard error; use as a context manager and call `advance`."""

    def __init__(self, total: int, unit: str, title: str, start: int = 0) -> None:
        self.total, self.unit, self.title = total, unit, title
        self.done, self.note = start, ""
        self.start, self.began = start, time.monotonic()
        self.line_at, self.said = self.began + LINE_EVERY, -1
        terminal = sys.stderr.isatty() and not hushed
        self.bar = tqdm(total=total, initial=start, unit=" " + unit, desc=title, unit_scale=True) if terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif failure[0] is None and self.said != self.done:
            self._line()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count n more units; `note` (a few words, such as the loss) is shown beside them."""
        self.done += n
        self.note = note
        if self.bar is not None:
            self.bar.update(n)
            if note:
                self.bar.set_postfix_str(note, refresh=False)
        elif time.monotonic() >= self.line_at:
            self.line_at = time.monotonic() + LINE_EVERY
            self._line()

    def _line(self) -> None:
        if hushed:
            return
        self.said = self.done
        elapsed = max(time.monotonic() - self.began, 1e-9)
        rate = (self.done - self.start) / elapsed
        left = f", {duration((self.total - self.done) / rate)} left" if 0 < self.done < self.total and rate > 0 else ""
        note = f" ({self.note})" if self.note else ""
        text = (
            f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, {duration(elapsed)}{left}{note}"
        )
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words, to two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{seconds / 60:.1f} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 72 else f"{hours // 24} d {hours % 24} h"


def say(text: str) -> None:
    """Print a line of information on standard error, above any bar."""
    if not hushed:
        tqdm.write(text, file=sys.stderr)


def hush() -> None:
    """Print nothing from here on but errors, in a process that another speaks for."""
    global hushed
    hushed = True
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
