"""`python -m saebench.engines TASK.json`: a worker of engine=joblib; what came of the task is left in TASK.outcome.json."""

from __future__ import annotations

import sys
from pathlib import Path

from saebench.engines.work import work
from saebench.store import read_json, write_json

if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_json(path.with_suffix(".outcome.json"), work(read_json(path)))
