"""Progress: plain lines with rate, time gone and time left, in units that a person reads."""

from __future__ import annotations

import pytest

from saebench import progress
from saebench.progress import Progress, duration


def test_lines_say_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(10_000, "tokens", "training", start=1_000) as bar:
        for _ in range(3):
            now[0] += 6.0
            bar.advance(600, "loss 3")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 2,200 of 10,000 tokens, 100/s, 12.0 s, 1.3 min left (loss 3)",
        "training: 2,800 of 10,000 tokens, 100/s, 18.0 s, 1.2 min left (loss 3)",
    ]


def test_durations_have_two_units_at_most() -> None:
    found = [duration(s) for s in (0, 59.94, 90, 3599, 3600, 7_260, 250_000, 300_000, 30_275_760)]
    assert found == [
        "0.0 s",
        "59.9 s",
        "1.5 min",
        "1 h 00 min",
        "1 h 00 min",
        "2 h 01 min",
        "69 h 27 min",
        "3 d 11 h",
        "350 d 9 h",
    ]
