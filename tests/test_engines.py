"""Engines: cutting gangs, joblib's processes and submitit's on the embedded model, failures, resumption, interrupts."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from saebench import engines
from saebench.checks import InputError, WorkError
from saebench.cli.main import main
from saebench.config import RunConfig, as_dict, from_dict
from saebench.engines.processes import Processes, visible_gpus
from saebench.engines.tasks import Outcome, Task, balanced, caching, device_of, divide, units
from saebench.engines.work import work
from saebench.pipeline import run
from tests.configs import run_config
from tests.test_pipeline import SMALL

QUICK = [*SMALL, "evaluate.sizes=[0.5]", "evaluate.rules=[]", "evaluate.budgets=[]", "evaluate.ce_tokens=0"]
JOBLIB = ["engine=joblib", "engine.n_jobs=2"]
SUBMITIT = ["engine=submitit", "engine.cluster=local", "engine.gpus_per_node=null"]


@cache
def composed(*overrides: str) -> RunConfig:
    return run_config(*QUICK, "device=cpu", *overrides)


def small(outputs: Path, *overrides: str) -> RunConfig:
    return dataclasses.replace(composed(*overrides), outputs=str(outputs))


def ordered(cfg: RunConfig, order_seed: int) -> RunConfig:
    """The same in another gang."""
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, order_seed=order_seed))


def seeded(cfg: RunConfig, seed: int) -> RunConfig:
    return dataclasses.replace(cfg, seed=seed)


def jobs(outputs: Path, *overrides: str, sizes: tuple[int, ...] = (64,), seeds: int = 1) -> dict[int, RunConfig]:
    cfg = small(outputs, *overrides)
    saes = [dataclasses.replace(cfg.sae, d_sae=d) for d in sizes]
    return dict(enumerate(seeded(dataclasses.replace(cfg, sae=sae), s) for sae in saes for s in range(seeds)))


# cutting


def test_gangs_are_cut_into_parts_of_equal_work(tmp_path: Path) -> None:
    mine = jobs(tmp_path, sizes=(512, 256, 128, 64), seeds=2)
    parts = balanced(mine, 3)
    assert sorted(i for part in parts for i in part) == list(range(8))
    assert all(part == sorted(part) for part in parts)
    loads = [sum(mine[i].sae.d_sae for i in part) for part in parts]
    assert loads == [640, 640, 640]
    assert balanced(mine, 1) == [list(range(8))]
    assert len(balanced(mine, 100)) == 8


def test_what_is_searched_together_or_is_one_run_stays_together(tmp_path: Path) -> None:
    searched = jobs(tmp_path, "experiment.lr_factors=[1,2]", sizes=(64, 128), seeds=3)
    assert units(searched) == [[0, 1, 2], [3, 4, 5]]
    once = small(tmp_path, "train.lr=1e-3")
    given = {
        i: dataclasses.replace(once, evaluate=dataclasses.replace(once.evaluate, seed=n)) for i, n in ((4, 1), (7, 2))
    }
    assert units(given | {9: small(tmp_path)}) == [[4, 7], [9]]


def test_tasks_hold_every_run_once_and_go_through_json(tmp_path: Path) -> None:
    configs = [ordered(seeded(small(tmp_path), s), o) for o in (0, 1) for s in (0, 1, 2)]
    engine = small(tmp_path, *JOBLIB, "engine.parts=2").engine
    tasks = divide(configs, engine, "sweep")
    assert [task.name for task in tasks] == [f"part {n} of 4" for n in (1, 2, 3, 4)]
    assert sorted(i for task in tasks for i in task.jobs) == list(range(6))
    order = json.loads(json.dumps(tasks[0].order()))
    assert [from_dict(values) for values in order["configs"]] == list(tasks[0].jobs.values())
    assert from_dict(as_dict(small(tmp_path, *SUBMITIT))) == small(tmp_path, *SUBMITIT)


def test_a_cache_that_several_tasks_read_is_made_first(tmp_path: Path) -> None:
    configs = [ordered(small(tmp_path), o) for o in (0, 1)]
    configs.append(small(tmp_path, "model.layer=0"))
    engine = configs[0].engine
    (cache,) = caching(divide(configs, engine, "sweep"))  # two gangs read one cache, the third its own
    assert cache.does == "cache"
    assert work(cache.order())["folders"]
    assert caching(divide(configs, engine, "sweep")) == []
    streamed = dataclasses.replace(small(tmp_path / "none"), cache="stream")
    assert caching(divide([streamed, ordered(streamed, 1)], engine, "sweep")) == []


def test_keys_are_those_of_the_device_that_the_job_will_have(tmp_path: Path) -> None:
    cluster = ["engine=submitit", "engine.gpus_per_node=1"]
    gpu, none = small(tmp_path, *cluster), small(tmp_path, *SUBMITIT)
    asked = [(gpu, "auto"), (gpu, "cpu"), (none, "auto"), (none, "cuda")]
    devices = [device_of(cfg.engine, dataclasses.replace(cfg, device=device)) for cfg, device in asked]
    assert [str(device) for device in devices] == ["cuda", "cpu", "cpu", "cuda"]
    assert device_of(small(tmp_path, *JOBLIB).engine, small(tmp_path)) is None
    asking = dataclasses.replace(gpu, device="auto", model=dataclasses.replace(gpu.model, dtype="auto"))
    (task,) = divide([asking], gpu.engine, "sweep")
    assert task.source.inputs["site"]["dtype"] == "bfloat16"  # not this machine's float32


# engines


ENGINES = pytest.mark.parametrize("engine", [JOBLIB, SUBMITIT], ids=["joblib", "submitit"])


@ENGINES
def test_an_engine_makes_what_is_missing_as_this_process_would(
    engine: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handed = small(tmp_path / "handed", *engine, "engine.parts=2")
    configs = [seeded(handed, seed) for seed in (0, 1)]
    alone = run([seeded(small(tmp_path / "alone"), 1)])[0]
    first = run(configs[:1])[0]
    capfd.readouterr()
    folders = engines.sweep(configs)
    assert folders[0] == first
    assert folders[1].name == alone.name
    for name in ("sae.safetensors", "metrics.csv", "latents.csv"):
        assert (folders[1] / name).read_bytes() == (alone / name).read_bytes()
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "1 of 2 parts are done already"
    assert said[-1].startswith("part 2 of 2 (1 SAEs: topk): done (1 of 1, after ")
    (log,) = [line.rpartition("log in ")[2] for line in said if "log in" in line]
    assert "training topk" in Path(log).read_text()
    (folders[1] / "metrics.csv").unlink()
    assert engines.sweep(configs, evaluate_only=True) == folders
    assert capfd.readouterr().err.splitlines() == ["2 of 2 parts are done already"]
    assert (folders[1] / "metrics.csv").read_bytes() == (alone / "metrics.csv").read_bytes()


@pytest.mark.long
@ENGINES
def test_workers_share_a_cache_that_is_made_first(
    engine: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = small(tmp_path, *engine, "engine.parts=2")
    folders = engines.sweep([seeded(cfg, seed) for seed in (0, 1, 2)])
    said = capfd.readouterr().err
    assert "cache 1 of 1 (activations): done (1 of 1" in said
    assert "part 1 of 2 (2 SAEs: topk): done" in said
    assert [folder.name for folder in folders] == [
        folder.name for folder in run([seeded(small(tmp_path / "alone"), seed) for seed in (0, 1, 2)])
    ]


@pytest.mark.long
def test_searches_are_made_by_workers_and_their_table_is_whole(tmp_path: Path) -> None:
    asked = ["experiment.lr_factors=[0.1,1]", "sae.k=4"]
    configs = [small(tmp_path, *JOBLIB, "engine.parts=2", *asked, f"sae.d_sae={d}") for d in (64, 96)]
    folders = engines.sweep(configs)
    rows = (tmp_path / "tables" / "lr_search.csv").read_text().splitlines()
    assert len(rows) == 5  # a header, and two rates for each size
    assert engines.sweep(configs) == folders


def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In place of Python: a program that is killed for the first part, and leaves an outcome for others."""
    script, outcome = tmp_path / "python", '{"folders": ["made"]}'
    killed = 'case "$3" in *part-1-of-3.json) kill -9 $$ ;; esac'
    script.write_text(
        f"#!/bin/sh\n{killed}\necho $CUDA_VISIBLE_DEVICES\necho '{outcome}' > \"${{3%.json}}.outcome.json\"\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_killed_gang_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [ordered(small(tmp_path, "engine=joblib"), o) for o in (0, 1, 2)]
    engine = dataclasses.replace(configs[0].engine, n_jobs=2)
    pretend(monkeypatch, tmp_path)
    tasks = divide(configs, engine, "sweep")
    results = {task.name: outcome for task, outcome in Processes(engine, tmp_path, ["7"]).hand_out(tasks)}
    lost = results.pop("part 1 of 3")
    assert lost == Outcome(failed="its process ended with code -9", log=str(tmp_path / "part-1-of-3.log"))
    assert [outcome.folders for outcome in results.values()] == [["made"], ["made"]]
    assert {Path(outcome.log).read_text() for outcome in results.values()} == {"7\n"}
    with pytest.raises(WorkError, match=r"1 of 3 parts failed, the others are done: part 1 of 3: its process ended"):
        engines.check([(tasks[0], lost), *((task, results[task.name]) for task in tasks[1:])])


def test_what_a_user_got_wrong_ends_with_code_2_and_other_failures_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (task,) = divide([small(tmp_path)], small(tmp_path).engine, "sweep")
    wrong, failed = Outcome(wrong="train.lr: lower it", log="a.log"), Outcome(failed="it died", log="b.log")
    with pytest.raises(InputError, match=r"train\.lr: lower it \(log: a\.log\)"):
        engines.check([(task, wrong), (task, Outcome(["x"]))])
    with pytest.raises(WorkError, match=r"5 of 5 parts failed.*; and 2 more"):
        engines.check([(task, wrong), (task, failed), (task, wrong), (task, wrong), (task, wrong)])
    assert engines.check([(task, Outcome(["x"]))]) is None

    def fails(*_: Any) -> None:
        raise WorkError("1 of 2 parts failed: part 1: it died (log: b.log)")

    monkeypatch.setattr(engines, "sweep", fails)
    monkeypatch.setattr(sys, "argv", ["saebench", "sweep"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "saebench: 1 of 2 parts failed: part 1: it died (log: b.log)\n"


def test_a_worker_says_what_was_wrong_and_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = {"does": "evaluate", "configs": [as_dict(small(tmp_path))]}
    assert "not trained yet" in work(order)["wrong"]

    def fails(_: object) -> None:
        raise RuntimeError("a cable\nis loose")

    monkeypatch.setitem(work.__globals__["ACTS"], "evaluate", fails)
    assert work(order) == {"failed": "RuntimeError: a cable is loose"}
    assert "Traceback" in capsys.readouterr().err


def test_caching_that_fails_takes_its_readers_with_it(tmp_path: Path) -> None:
    tasks = divide([ordered(small(tmp_path), o) for o in (0, 1)], small(tmp_path).engine, "sweep")
    other = divide([small(tmp_path, "model.layer=0")], small(tmp_path).engine, "sweep")
    handed: list[str] = []

    def hand_out(given: list[Task]) -> Any:
        for task in given:
            handed.append(task.does)
            yield task, Outcome(wrong="too short") if task.does == "cache" else Outcome(["x"])

    results = engines.made([*tasks, *other], hand_out, evaluate_only=False)
    assert handed == ["cache", "sweep"]
    assert [outcome.wrong for _, outcome in results] == ["too short", ""]


# what a user can get wrong


@pytest.mark.parametrize(("engine", "extra"), [("joblib", "joblib"), ("submitit", "slurm")])
def test_a_library_that_is_missing_is_named(
    engine: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(InputError, match=rf"engine={engine}: cannot import it .*pip install 'saebench\[{extra}\]'"):
        engines.sweep([small(tmp_path, f"engine={engine}")])
    assert list(tmp_path.iterdir()) == []


def test_engines_are_refused_where_they_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="engine=joblib,local: give one"):
        engines.sweep([small(tmp_path), small(tmp_path, "engine=joblib")])
    with pytest.raises(InputError, match="device=cuda:1: engine=joblib"):
        engines.sweep([dataclasses.replace(small(tmp_path, "engine=joblib"), device="cuda:1")])
    with pytest.raises(InputError, match=r"engine\.cluster=slrm: did you mean slurm"):
        small(tmp_path, "engine=submitit", "engine.cluster=slrm")
    with pytest.raises(InputError, match="engine=joblb: did you mean joblib"):
        small(tmp_path, "engine=joblb")
    with pytest.raises(InputError, match="engine=joblib: `saebench train` works in this process"):
        engines.require_local(small(tmp_path, "engine=joblib"), "train")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"engine\.cluster=slurm: there is no srun here"):
        engines.sweep([small(tmp_path, "engine=submitit")])


# the environment of workers


def test_gpus_are_dealt_out_and_processors_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 12)
    engine = small(tmp_path, "engine=joblib").engine
    dealt = Processes(engine, tmp_path, ["0", "GPU-1f"])
    assert [dealt.settings.get()["CUDA_VISIBLE_DEVICES"] for _ in range(2)] == ["0", "GPU-1f"]
    assert dealt.environment()["OMP_NUM_THREADS"] == "6"
    shared = Processes(dataclasses.replace(engine, n_jobs=4), tmp_path, ["0", "1"])
    assert [shared.settings.get()["CUDA_VISIBLE_DEVICES"] for _ in range(4)] == ["0", "1", "0", "1"]
    assert Processes(engine, tmp_path, []).settings.get() == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert dealt.environment()["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert visible_gpus() == ["5", "7"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1", "2"]


def test_jobs_of_a_cluster_are_one_array_with_the_parameters_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saebench.engines.slurm import Cluster, Worker

    for name in ("srun", "sbatch"):
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho Submitted batch job 12\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    asked = ["engine=submitit", "engine.partition=gpu", "engine.array_parallelism=3", "+engine.additional.account=mine"]
    cfg = small(tmp_path, *asked)
    executor = Cluster(cfg.engine, tmp_path / "jobs").executor()
    with executor.batch():
        made = [executor.submit(Worker(), {"does": "sweep", "configs": []}) for _ in range(5)]
    assert [job.job_id for job in made] == [f"12_{i}" for i in range(5)]
    (text,) = {script.read_text() for script in (tmp_path / "jobs").glob("*.sh")}
    for wanted in (
        "--array=0-4%3",
        "--partition=gpu",
        "--account=mine",
        "--time=720",
        "--gpus-per-node=1",
        "--mem=64GB",
    ):
        assert f"#SBATCH {wanted}" in text
    again = Worker().checkpoint({"does": "sweep", "configs": []})
    assert (type(again.function), again.args) == (Worker, ({"does": "sweep", "configs": []},))


def test_a_job_without_an_outcome_failed() -> None:
    from types import SimpleNamespace

    from saebench.engines.slurm import outcome

    job: Any = SimpleNamespace(
        paths=SimpleNamespace(stdout=Path("12.out")), exception=lambda: RuntimeError("gone"), state="OUT_OF_MEMORY"
    )
    assert outcome(job) == Outcome(failed="the job ended without an outcome (state OUT_OF_MEMORY)", log="12.out")


@pytest.mark.long
def test_an_interrupted_sweep_saves_in_all_processes_and_goes_on(tmp_path: Path) -> None:
    asked = [
        *QUICK,
        "sae=topk,batchtopk",
        "train.n_tokens=3_000_000",
        "checkpoint=0",
        "device=cpu",
        f"outputs={tmp_path}",
    ]
    command = [sys.executable, "-m", "saebench", "sweep", *JOBLIB, "engine.parts=2", *asked]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        logs = [path.read_text() for path in tmp_path.glob("engine/*/part*.log")]
        if len(logs) == 2 and all("training" in log for log in logs):
            break
        time.sleep(0.5)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "saebench: stopped; the same command goes on from here"
    assert len(list(tmp_path.glob("runs/*.partial/step-*.json"))) == 2
    assert list(tmp_path.glob("runs/*.lock")) == []  # nobody is at work any more
