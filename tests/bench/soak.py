"""A soak: cache many tokens, train on them for hours, and watch the process's memory and open files.

    python -m tests.bench.soak [--tokens 20_000_000] [--minutes 120] [--text-seed 0] [--folder outputs/soak] [-- OVERRIDES]

Writes a text of seeded made-up words, caches the tiny model's activations of it (`saebench cache`), trains on them
(`saebench train`, as many epochs as it takes, checkpoints every minute) until the time is over, and stops it with SIGTERM.
Writes soak.csv (stage, seconds, rss_mb, files) and soak.svg into the folder; prints the largest memory and what the second half
of the training added, and ends with exit code 1 if that is more than GROWTH or a file handle, or caching took more than BOUND.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

GROWTH_MB = 64.0  # of the second half of a training over its first half
BOUND_MB = 2500.0  # of any stage, whatever the number of tokens
EVERY = 1.0  # seconds
COLUMNS = ("stage", "seconds", "rss_mb", "files")
Row = tuple[str, float, float, int]
SMALL = [
    "model=tiny-gpt2",
    "data=text",
    "sae=batchtopk",
    "sae.d_sae=1024",
    "sae.k=16",
    "train.batch_size=2048",
    "evaluate.ce_tokens=0",
]


def write_text(path: Path, tokens: int, seed: int) -> None:
    """Documents of made-up words, at least so many tokens (a word is at least one); Zipf's law, so that they repeat."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    left = tokens
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            document = rng.choices(words, weights, k=500)
            file.write(" ".join(document) + ".\n\n")
            left -= len(document)


def sample(pid: int) -> tuple[float, int]:
    """Resident memory in MB and the number of open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


def watch(stage: str, command: list[str], seconds: float, log: Path) -> list[Row]:
    """Run a command for at most so many seconds, then SIGTERM it; its samples. Raises RuntimeError if it fails before."""
    rows: list[Row] = []
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "saebench", *command], stdout=file, stderr=file)
        while process.poll() is None and time.monotonic() - began < seconds:
            try:
                rows.append((stage, time.monotonic() - began, *sample(process.pid)))
            except (FileNotFoundError, ProcessLookupError, IndexError):
                break  # it has just ended
            time.sleep(EVERY)
        stopped = process.poll() is None
        if stopped:
            process.send_signal(signal.SIGTERM)
        code = process.wait(300)
    if code != (130 if stopped else 0):
        raise RuntimeError(f"saebench {command[0]} ended with {code}; see {log}")
    return rows


def grown(rows: list[Row]) -> tuple[float, int]:
    """What the largest memory and number of files of the last half exceed those of the second quarter by."""
    n = len(rows)
    before, after = rows[n // 4 : n // 2], rows[n // 2 :]
    return max(r[2] for r in after) - max(r[2] for r in before), max(r[3] for r in after) - max(r[3] for r in before)


def draw(rows: list[Row], path: Path) -> None:
    """Memory and open files against time, one stage beside the other."""
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(row[0] for row in rows))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
    highest = {2: max(row[2] for row in rows), 3: max(row[3] for row in rows)}
    for column, stage in enumerate(stages):
        mine = [row for row in rows if row[0] == stage]
        minutes = [row[1] / 60 for row in mine]
        for line, (place, label) in enumerate(((2, "memory (MB)"), (3, "open files"))):
            axes[line][column].plot(minutes, [row[place] for row in mine], color="#0072B2")
            axes[line][column].set_ylim(0, 1.1 * highest[place])
            axes[line][0].set_ylabel(label)
        axes[0][column].set_title(stage)
        axes[1][column].set_xlabel("minutes")
    figure.savefig(path)


def main() -> int:
    """Cache, train, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--text-seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    text = args.folder / "text.txt"
    if not text.is_file():
        write_text(text, 2 * args.tokens, args.text_seed)
    given = [*SMALL, f"data.path={text}", f"data.n_tokens={args.tokens}", f"outputs={args.folder}", *args.overrides]
    rows = watch("caching", ["cache", *given], float("inf"), args.folder / "cache.log")
    training = ["train", *given, f"train.n_tokens={10**12}", "checkpoint=60"]
    rows += watch("training", training, 60 * args.minutes, args.folder / "train.log")
    with (args.folder / "soak.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    draw(rows, args.folder / "soak.svg")
    most = max(row[2] for row in rows)
    memory, files = grown([row for row in rows if row[0] == "training"])
    print(
        f"{len(rows)} samples; at most {most:,.0f} MB; second half of the training: {memory:+.1f} MB, {files:+d} files"
    )
    return int(most > BOUND_MB or memory > GROWTH_MB or files > 0)


if __name__ == "__main__":
    sys.exit(main())
