"""ls, diff, rm and watch: what they say of runs and caches in every state, and what they never take away."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saebench import running
from saebench.checks import InputError
from saebench.cli.main import main
from saebench.difference import describe_difference
from saebench.pipeline import run
from saebench.removal import choose, doomed_caches, doomed_runs, removal_table, remove
from saebench.running import Running, live
from saebench.shelf import duration, find_run, list_runs, shelf_table
from saebench.store import held, lock, lock_of, write_json
from saebench.watch import MEMBERS, drawn, lines_of, seconds_left, watch
from tests.synthetic_runs import write_run
from tests.test_pipeline import small


def record(path: Path, inputs: dict[str, Any], done: bool = True) -> Path:
    """A stage of one file that was made, or begun, from `inputs`."""
    folder = path if done else path.with_name(path.name + ".partial")
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * 1000)
    write_json(folder / ("done.json" if done else "begun.json"), {"inputs": inputs} if done else inputs)
    return path


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Runs in several states."""
    write_run(tmp_path, "topk", 256, 16)
    write_run(tmp_path, "topk", 256, 32)
    write_run(tmp_path, "batchtopk", 1024, 16, train__lr=0.01)
    (write_run(tmp_path, "relu") / "metrics.csv").unlink()
    inputs = {
        "sae": {"name": "gated", "l1": 0.1, "target_l0": None, "d_sae": 64},
        "activations": {"site": {"layer": 3}},
    }
    record(tmp_path / "runs" / "gated-begun", inputs, done=False)
    failed = record(tmp_path / "runs" / "gated-failed", inputs, done=False)
    write_json(failed.with_name("gated-failed.partial") / "failed.json", {"failure": "NaN"})
    (tmp_path / "runs" / "lost").mkdir()
    return tmp_path


def states(outputs: Path, *filters: str) -> dict[str, str]:
    return {one.name: one.state for one in list_runs(outputs, filters)}


def test_every_state_of_a_run_is_told(outputs: Path) -> None:
    found = states(outputs)
    assert found.pop("lost") == "damaged"
    assert found.pop("gated-begun") == "interrupted"
    assert found.pop("gated-failed") == "failed"
    assert found.pop("relu-256-16-0") == "trained"
    assert set(found.values()) == {"done"}
    with lock(outputs / "runs" / "gated-begun"):
        assert states(outputs, "state=training") == {"gated-begun": "training"}
    with Running(outputs, "evaluating", {"topk-256-16-0": None}):
        assert states(outputs, "run=topk-256-16-0") == {"topk-256-16-0": "evaluating"}
    assert list((outputs / "running").iterdir()) == []


def test_a_list_shows_the_full_view_by_the_rule_of_inference(outputs: Path) -> None:
    one = next(r for r in list_runs(outputs) if r.name.startswith("batchtopk"))
    lines = (one.folder / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    wanted = next(r for r in rows if (r["view"], r["mode"], r["tokens"]) == ("full", "threshold", "typical"))
    assert one.measured["fvu"] == float(wanted["fvu"])
    assert one.measured["ce_increase"] == pytest.approx(float(wanted["ce_sae"]) - float(wanted["ce_clean"]))
    table = shelf_table(list_runs(outputs), now=one.changed + 7200).splitlines()
    assert table[0].split()[:5] == ["run", "state", "model", "layer", "data"]
    assert next(line for line in table if line.startswith("batchtopk")).endswith("2 h")
    assert table[-1] == "3 done, 1 trained, 1 interrupted, 1 failed, 1 damaged"


def test_filters_narrow_and_wrong_ones_are_one_line(outputs: Path) -> None:
    assert set(states(outputs, "variant=topk,batchtopk", "k=16")) == {
        "topk-256-16-0",
        "batchtopk-1024-16-0train__lr0.01",
    }
    assert set(states(outputs, "train.lr=1e-2")) == {"batchtopk-1024-16-0train__lr0.01"}
    assert set(states(outputs, "run=gated-*", "layer=3")) == {"gated-begun", "gated-failed"}
    assert states(outputs, "k=17") == {}
    wrong = {
        "k": "key=value",
        "sae.kk=3": "did you mean sae.k",
        "name=x": "did you mean",
        "state=dome": "the states are",
    }
    for text, said in wrong.items():
        with pytest.raises(InputError, match=said):
            list_runs(outputs, [text])
    with pytest.raises(InputError, match="no runs"):
        list_runs(outputs / "elsewhere")


def test_listing_five_hundred_runs_is_quick_and_needs_no_torch(tmp_path: Path) -> None:
    first = write_run(tmp_path)
    for i in range(1, 500):
        copy = first.with_name(f"topk-{i:03d}")
        copy.mkdir()
        for name in ("config.yaml", "metrics.csv", "done.json"):
            os.link(first / name, copy / name)
    code = (
        "import sys, time; from pathlib import Path; from saebench.shelf import list_runs; began = time.process_time(); "
        f"assert len(list_runs(Path({str(tmp_path)!r}))) == 500; print(time.process_time() - began); "
        "assert not {'torch', 'pandas', 'transformers'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5  # 1 s alone


def test_a_run_is_found_by_path_name_and_beginning(outputs: Path) -> None:
    wanted = outputs / "runs" / "topk-256-16-0"
    assert (
        find_run(outputs, str(wanted)) == find_run(outputs, wanted.name) == find_run(outputs, "topk-256-16") == wanted
    )
    with pytest.raises(InputError, match="2 runs begin so"):
        find_run(outputs, "topk")
    with pytest.raises(InputError, match="no such run"):
        find_run(outputs, "jumprelu")


def test_a_difference_names_keys_and_changes(outputs: Path) -> None:
    a, b = (outputs / "runs" / name for name in ("topk-256-16-0", "topk-256-32-0"))
    text = describe_difference(a, b)
    assert ["sae.k", "16", "32"] in [line.split() for line in text.splitlines()]
    fvus = [next(r for r in list_runs(outputs) if r.folder == folder).measured["fvu"] for folder in (a, b)]
    row = next(line.split() for line in text.splitlines() if line.split()[:1] == ["fvu"])
    assert [float(cell) for cell in row[1:3]] == pytest.approx(fvus, rel=1e-5)
    assert float(row[4]) == pytest.approx(100 * (fvus[1] / fvus[0] - 1), abs=0.01)
    assert "environment: no difference" in text
    assert "pruned, energy" not in text
    assert "pruned, energy" in describe_difference(a, a, every=True)
    with pytest.raises(InputError, match="not a finished run"):
        describe_difference(a, outputs / "runs" / "gated-begun.partial")


def caches(outputs: Path) -> dict[str, Path]:
    """Two token sets, three caches of activations; a run and an unfinished run refer to one cache of each kind."""
    used = {"tokens": {"n": 1}, "layer": 1}
    record(outputs / "runs" / "topk-real", {"activations": used | {"special": "keep"}, "sae": {}})
    record(outputs / "runs" / "topk-begun", {"activations": {"tokens": {"n": 1}, "layer": 2}, "sae": {}}, done=False)
    return {
        "tokens": record(outputs / "tokens" / "t1", {"n": 1}),
        "unused tokens": record(outputs / "tokens" / "t2", {"n": 2}),
        "shards": record(outputs / "activations" / "a1", used),
        "stats": record(outputs / "activations" / "a1-stats", used | {"special": "keep"}),
        "begun": record(outputs / "activations" / "a2", {"tokens": {"n": 1}, "layer": 2}, done=False),
        "unused": record(outputs / "activations" / "a3", {"tokens": {"n": 2}, "layer": 1}),
    }


def test_only_caches_that_no_run_left_refers_to_go(tmp_path: Path) -> None:
    made = caches(tmp_path)
    assert {r.path for r in doomed_caches(tmp_path)} == {made["unused"], made["unused tokens"]}
    both = doomed_caches(tmp_path, [tmp_path / "runs" / "topk-real"])
    assert {r.path for r in both} == {made[n] for n in ("unused", "unused tokens", "shards", "stats")}
    with lock(made["unused"]):  # being made, so its tokens stay as well
        assert doomed_caches(tmp_path) == []
    removals = doomed_caches(tmp_path)
    assert removals[0].bytes > 1000
    assert "2 folders, 2." in removal_table(removals)
    assert list(remove(tmp_path, removals)) == []
    assert {p.name for p in tmp_path.glob("*/*")} == {
        "t1", "a1", "a1-stats", "a2.partial", "topk-real", "topk-begun.partial"
    }  # fmt: skip
    (tmp_path / "runs" / "topk-real" / "done.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        doomed_caches(tmp_path)


def test_what_is_being_made_is_never_removed(outputs: Path) -> None:
    runs = choose(outputs, ["state=interrupted,failed,done"])
    with lock(outputs / "runs" / "gated-begun"):
        removals = doomed_runs(outputs, runs)
        said = list(remove(outputs, removals))  # it was taken up after it was listed
        assert len(said) == 1
        assert "another process is making it" in said[0]
        assert doomed_runs(outputs, choose(outputs, ["gated-begun"])) == []
    assert {one.name for one in list_runs(outputs)} == {"gated-begun", "relu-256-16-0", "lost"}
    listed = doomed_runs(outputs, choose(outputs, ["relu", "lost"]))
    with Running(outputs, "evaluating", {"relu-256-16-0": None}):
        assert [r.path.name for r in doomed_runs(outputs, choose(outputs, ["relu", "lost"]))] == ["lost"]
        assert [line.endswith("a process is at it; it stays") for line in remove(outputs, listed)] == [True]
    assert {one.name for one in list_runs(outputs)} == {"gated-begun", "relu-256-16-0"}


def test_nothing_outside_the_runs_is_removed(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = write_run(tmp_path_factory.mktemp("other"))
    with pytest.raises(InputError, match="--outputs"):
        choose(outputs, [str(other)])
    assert [r.note for r in doomed_runs(outputs, choose(outputs, ["k=16", "variant=topk"]))] == [""]
    (outputs / "claims.csv").write_text("id,runs\nA1,topk-1 topk-256-16-0\n")
    assert [r.note for r in doomed_runs(outputs, choose(outputs, ["k=16", "variant=topk"]))] == ["behind claims.csv"]


def test_the_command_asks_and_removes(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["saebench", *words, "--outputs", str(outputs)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out + said.err

    assert command("rm")[0] == 2
    code, text = command("rm", "state=failed")
    assert code == 2
    assert "runs/gated-failed" in text
    assert "--yes" in text
    assert "gated-failed" in command("ls", "state=failed")[1]
    assert command("rm", "state=failed", "--yes")[0] == 0
    assert command("ls", "state=failed") == (0, "no run\n")
    assert "sae.k" in command("diff", "topk-256-16", "topk-256-32")[1]


class Stepping:
    """A run in training that is only told of."""

    def __init__(self, done: int, steps: int) -> None:
        self.done, self.steps = done, steps
        self.failure: str | None = None
        self.log: list[dict[str, Any]] = [
            {"step": done, "loss": 0.5, "fvu": 0.25, "l0": 16.0, "dead": 3, "tokens_per_s": 1234.5}
        ]


def test_a_watch_tells_progress_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick, slow = Stepping(10, 100), Stepping(20, 200)
    with Running(tmp_path, "training", {"topk-1": quick, "relu-1": slow}) as told:
        quick.done, slow.done = 60, 70
        told.began -= 50
        told.next = 0.0
        told.before(lambda: None)()
        (status,) = live(tmp_path)
        assert seconds_left(status) == pytest.approx(130, rel=0.05)  # 50 steps in 50 s, 130 to go
        text = "\n".join(lines_of([status], []))
        assert "training 2 SAEs: 43%, 2 min left" in text
        assert "topk-1: step 60 of 100; loss 0.5, FVU 0.2500, L0 16.0, dead 3, tokens/s 1,234" in text
        told.before(lambda: None)()  # too soon to be told again
        assert live(tmp_path) == [status]
        with lock(tmp_path / "activations" / "abc"):
            watch(tmp_path, once=True)
        assert "activations/abc: being made" in capsys.readouterr().out
    watch(tmp_path)
    assert capsys.readouterr().out == "nothing is being made\n"


def test_a_terminal_shows_a_row_for_each_run(tmp_path: Path) -> None:
    going: dict[str, Stepping] = {f"topk-{i:02d}": Stepping(i, 100) for i in range(MEMBERS + 2)}
    going["topk-03"].failure = "the loss became nan at step 3"
    with Running(tmp_path, "training", going):
        console = Console(file=io.StringIO(), force_terminal=True, width=140, height=100)
        console.print(drawn(live(tmp_path), ["activations/abc: being made"]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("1,234") == MEMBERS
    assert "the loss became nan at step 3" in text
    assert "and 2 more" in text
    assert "activations/abc: being made" in text


def test_a_killed_process_is_told_of_no_more(tmp_path: Path) -> None:
    write_json(record(tmp_path / "running", {}) / "training-elsewhere-1.json", {"doing": "training", "began": 0.0})
    for left in ("training-elsewhere-1.json.lock", "training-elsewhere-2.json.lock", "training-elsewhere-3.json.part"):
        (tmp_path / "running" / left).touch()
    assert live(tmp_path) == []
    with Running(tmp_path, "training", {"topk-1": Stepping(0, 10)}) as told:
        assert len(live(tmp_path)) == 1
        left = {path.name for path in (tmp_path / "running").glob("*.json*")}
        assert left == {told.path.name, f"{told.path.name}.lock"}
    assert list((tmp_path / "running").glob("*.json*")) == []


def test_a_disk_that_takes_no_more_ends_the_telling_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(running, "write_json", full)
    steps: list[int] = []
    with Running(tmp_path, "training", {"topk-1": Stepping(0, 10)}) as told:
        told.before(lambda: steps.append(1))()
    assert steps == [1]
    assert told.next == float("inf")


def test_a_lock_is_seen_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    assert not held(path)
    with lock(path):
        assert held(path)
        with pytest.raises(InputError, match="another process"), lock(path, wait=False):
            pass
    lock_of(path).touch()  # left by a killed process
    assert not held(path)
    with lock_of(path).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # another who looks
        assert not held(path)


def test_training_and_evaluation_tell_of_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    tell = Running.tell

    def noted(self: Running) -> None:
        tell(self)
        (status,) = live(tmp_path)
        seen.append((status["doing"], sum(one.get("done", 0) for one in status["runs"].values())))

    monkeypatch.setattr(Running, "tell", noted)
    monkeypatch.setattr(running, "EVERY", 0.0)
    (folder,) = run([small(tmp_path)])
    assert seen == [("training", 0), *(("training", s) for s in range(1, 25)), ("evaluating", 0)]
    assert list((tmp_path / "running").glob("*.json*")) == []
    assert states(tmp_path) == {folder.name: "done"}
    assert doomed_caches(tmp_path) == []
    everything = doomed_caches(tmp_path, [folder])
    assert {r.path.parent.name for r in everything} == {"activations", "tokens"}
    assert len(everything) == len(list((tmp_path / "activations").iterdir())) + 1


def test_times_are_in_their_largest_unit() -> None:
    assert [duration(s) for s in (0, 59, 90, 7200, 200_000)] == ["0 s", "59 s", "2 min", "2 h", "2 d"]
