"""The search with Optuna: ranges as typed, rounds trained as gangs, going on where it stopped, the best run, wrong input."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from saebench import tune
from saebench.checks import InputError
from saebench.cli.main import main
from saebench.pipeline import train_gang
from saebench.search import read_rows
from saebench.space import Choice, Interval, split_space
from saebench.tune import Search, ask, open_search
from tests.test_search import QUICK

LR = "train.lr=interval(1e-4,1e-1)"
K = "sae.k=int(interval(2,8))"


def opened(outputs: Path, *overrides: str, by: str = "loss") -> Search:
    fixed, axes = split_space([*QUICK, "train.n_tokens=2000", f"outputs={outputs}", *overrides])
    return open_search(fixed, axes, by)


def test_ranges_are_read_as_typed() -> None:
    fixed, axes = split_space(["sae=topk", LR, K, "train.clip=interval(0,1)", "sae.input=dataset,token", "seed=3"])
    assert fixed == ["sae=topk", "seed=3"]
    assert axes == {
        "train.lr": Interval(1e-4, 0.1),
        "sae.k": Interval(2, 8),
        "train.clip": Interval(0.0, 1.0),
        "sae.input": Choice(("dataset", "token")),
    }
    logs = {key: axis.log for key, axis in axes.items() if isinstance(axis, Interval)}
    assert logs == {"train.lr": True, "sae.k": True, "train.clip": False}
    assert [Interval(1e-4, 0.1).short(v) for v in (0.000123456, 0.1000001)] == [0.0001235, 0.1]
    assert Interval(2, 8).short(5) == 5


def test_points_lie_in_their_ranges_and_near_what_was_good(tmp_path: Path) -> None:
    search = opened(tmp_path, LR, K, "sae.input=dataset,token")
    rows = [
        {"trial": i, **point, "loss": abs(math.log(point["train.lr"] / 1e-2))}
        for i, point in enumerate(ask(search, [], 60, 60))
    ]
    assert all(1e-4 <= row["train.lr"] <= 1e-1 and row["sae.k"] in range(2, 9) for row in rows)
    assert {row["sae.input"] for row in rows} == {"dataset", "token"}
    assert min(row["train.lr"] for row in rows) < 3e-4 < 3e-2 < max(row["train.lr"] for row in rows)
    later = ask(search, rows, 8, 4)
    assert later == ask(search, rows, 8, 4)
    far = sorted(abs(math.log(point["train.lr"] / 1e-2)) for point in later)
    assert far[4] < sorted(row["loss"] for row in rows)[20]  # the median of these among the best third of those
    assert len({point["train.lr"] for point in later}) > 1


def test_a_search_is_gangs_and_goes_on_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gangs: list[int] = []

    def counted(configs: Sequence[object], *rest: object) -> None:
        gangs.append(len(configs))
        train_gang(configs, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(tune, "train_gang", counted)
    search = opened(tmp_path / "a", LR)
    tune.tune(search, 2, 2)
    rows = tune.tune(search, 3, 2)
    assert gangs == [2, 1]
    assert [row["trial"] for row in rows] == [0, 1, 2]
    other = opened(tmp_path / "b", LR)
    shutil.copytree(tmp_path / "a" / "activations", tmp_path / "b" / "activations")
    assert tune.tune(other, 3, 2) == rows
    assert (other.path / "trials.csv").read_bytes() == (search.path / "trials.csv").read_bytes()
    assert tune.tune(search, 3, 2) == rows
    assert gangs == [2, 1, 2, 1]

    (best,) = [row for row in rows if row["run"]]
    assert best["loss"] == min(row["loss"] for row in rows)
    run = tmp_path / "b" / "runs" / best["run"]
    assert (run / "metrics.csv").is_file()
    assert json.loads((run / "done.json").read_text())["inputs"]["train"]["lr"] == best["train.lr"]
    log = read_rows(run / "train.csv")
    assert float(log[-1]["loss"]) == pytest.approx(best["loss"], rel=0.2)
    assert [path.name for path in (tmp_path / "b" / "runs").iterdir()] == [best["run"]]
    assert not (other.path / "trials").exists()


def test_a_trial_that_diverges_is_told_and_others_win(tmp_path: Path) -> None:
    search = opened(tmp_path, "train.lr=1e30,1e-3", "sae.k=2,3", by="fvu")
    rows = tune.tune(search, 4, 4)
    assert {row["train.lr"] for row in rows} == {"1e+30", "0.001"}
    for row in rows:
        assert math.isinf(row["fvu"]) == (row["train.lr"] == "1e+30")
    assert tune.read(search) == [{key: value for key, value in row.items() if key != "run"} for row in rows]
    assert len(ask(search, rows, 3, 2)) == 3
    assert opened(tmp_path, "train.lr=1e30,1e-3", "sae.k=2,3").path != search.path


def test_all_trials_diverging_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="search: the loss of all 1 trials became NaN or inf; search lower rates"):
        tune.tune(opened(tmp_path, "train.lr=interval(1e30,1e31)"), 1, 1)


WRONG = {
    "sae.k=4": "search: no key has a range; give one, such as 'train.lr=interval(1e-4,1e-2)'",
    "train.lr=interval(1,1)": "train.lr=interval(1,1): must rise",
    "train.lr=interval(-1,1)": "train.lr=-1.0: must be positive",
    "train.rl=interval(1,2)": "train.rl: there is no such key",
    "sae.k=int(interval(2,5000))": "sae.k=5000: cannot exceed sae.d_sae=1024",
    "train.lr=interval(1,2": "interval(1,2",
    "train.lr=interval(1,2) engine=joblib": "engine=joblib: `saebench search` works in this process",
    "train.lr=interval(1,2) --by=l0": "--by=l0: choose one of loss, fvu",
    "train.lr=interval(1,2) --trials=0": "--trials=0: must be at least 1",
    "train.lr=interval(1,2) --at-once=0": "--at-once=0: must be at least 1",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_searches_are_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["saebench", "search", *words.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert WRONG[words] in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"search: cannot import optuna .*; pip install 'saebench\[optuna\]'"):
        opened(tmp_path, LR)
