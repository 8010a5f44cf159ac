"""Laws of importance: is a latent's energy, firing frequency, or the decoder's spectrum a power law of its rank?

Every finished run in, outputs/tables/laws.csv, ranks.csv and levels.csv out. What is measured of a run is a stage of its
own in the run's folder, so that a second call finds it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy import ndarray

from saebench.checks import at_least, require
from saebench.finished import POINTS, finished_runs
from saebench.levels import blocks, level_rows, max_cosines
from saebench.progress import Progress
from saebench.runconfig import read_config
from saebench.store import is_done, key_of, read_mapping, stage, write_text
from saebench.tables import align, cell, number, read_table
from saebench.tails import MIN_SAMPLE, Sample, compare, fit, rank_size, sample_of, synthetic

NUMERICS = 1  # raised by hand when the laws of unchanged runs change
QUANTITIES = {"energy": False, "frequency": False, "firings": True, "eigenvalue": False}  # whether it is a count
LAWS = [
    *("run", "seed", "variant", "quantity", "n", "xmin", "tail_share", "alpha", "alpha_low", "alpha_high"),
    *("slope", "slope_low", "slope_high", "r2", "ks", "p_gof", "lr_lognormal", "p_lognormal"),
    *("lr_exponential", "p_exponential", "lr_stretched", "p_stretched", "best", "replicates"),
]
LEVELS = ["run", "seed", "variant", "level", "first", "last", "frequency", "energy", "dead", "max_cosine"]
BLOCK = 4096  # decoder rows in float64 at once


class Run(NamedTuple):
    """A finished run: its folder, its configuration, and the stage that holds what is measured here."""

    folder: Path
    config: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / "laws" / key_of(self.inputs)

    @property
    def named(self) -> dict[str, Any]:
        """The columns that name the run."""
        return {"run": self.folder.name, "seed": self.config["seed"], "variant": self.config["sae"]["name"]}


def write_laws(outputs: Path, replicates: int = 100) -> list[Path]:
    """Write laws.csv, ranks.csv and levels.csv into outputs/tables; the files. Raises InputError if there is no finished run.

    laws.csv, one row per run and quantity: `n` values above 0 (dead latents are left out); the tail from `xmin` on holds
    `tail_share` of them and has p(x) ~ x^-alpha, with a 95% interval by resampling the values and choosing xmin anew; `slope`
    of log value against log rank over all n, likewise, and its `r2`; `ks` distance of the tail, and `p_gof` the share of
    `replicates` samples of the fitted law that lie as far from their own fits (below 0.1: not a power law; the sample itself
    counts as one); lr_* the log likelihood ratio to a rival, above 0 where the power law is likelier, with Vuong's two-sided
    p_*; `best` the laws that the likeliest does not beat at 0.05, itself first. Eigenvalues are treated as draws too, though
    they repel each other.
    """
    at_least("--replicates", replicates, 20)
    runs = [open_run(folder, replicates) for folder in finished_runs(outputs)]
    todo = [run for run in runs if not is_done(run.path, run.inputs)]
    if todo:
        steps = sum(2 * replicates * len(QUANTITIES) + blocks(run.config["sae"]["d_sae"]) for run in todo)
        with Progress(steps, "steps", "importance laws") as progress:
            for run in todo:
                stage(run.path, run.inputs, partial(measure, run=run, replicates=replicates, progress=progress))
    levels = pd.DataFrame([run.named | row for run in runs for row in levels_of(run, runs)], columns=LEVELS)
    texts = {"levels.csv": levels.to_csv(index=False)}
    for name in ("laws.csv", "ranks.csv"):
        tables = [pd.read_csv(run.path / name) for run in runs]
        named = [table.assign(**run.named) for run, table in zip(runs, tables, strict=True)]
        columns = LAWS if name == "laws.csv" else ["run", "quantity", "rank", "value"]
        texts[name] = pd.concat(named, ignore_index=True)[columns].to_csv(index=False)
    folder = outputs / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def law_table(outputs: Path) -> str:
    """outputs/tables/laws.csv as aligned text: a line per run and quantity."""
    laws = read_table(outputs, "laws")
    columns = ["alpha", "alpha_low", "alpha_high", "tail_share", "p_gof", "slope", "r2"]
    numbers = {name: laws[name].map(lambda value: number(value, np.nan, 3)) for name in columns}
    keys = {name: laws[name].map(cell) for name in ("run", "quantity", "n")}
    return align(pd.DataFrame(keys | numbers | {"best": laws["best"].map(cell)}))


def open_run(folder: Path, replicates: int) -> Run:
    """A finished run, keyed by the contents of the files read here."""
    config = read_config(folder / "config.yaml")
    files = read_mapping(folder / "done.json").get("files")
    names = ("latents.csv", "sae.safetensors")
    records = {name: files.get(name) if isinstance(files, dict) else None for name in names}
    sums = {name: str(record.get("sha256")) for name, record in records.items() if isinstance(record, dict)}
    missing = [name for name in names if name not in sums or not (folder / name).is_file()]
    require(not missing, f"{folder}: no {' and no '.join(missing)}; remove the folder and make the run again")
    return Run(folder, config, {"numerics": NUMERICS, "replicates": replicates, "tokens": tokens_of(config), **sums})


def tokens_of(config: dict[str, Any]) -> int:
    """The tokens over which latents.csv was measured: train.importance_tokens in whole batches, at least one."""
    train = config["train"]
    return max(1, train["importance_tokens"] // train["batch_size"]) * train["batch_size"]


# one run


def measure(partial: Path, run: Run, replicates: int, progress: Progress) -> None:
    """Fill the stage of one run: laws.csv, ranks.csv, cosines.csv."""
    W_dec = decoder(run.folder)  # [d_sae, d_in]
    rows, ranks = [], []
    for name, values in quantities(run, W_dec).items():
        rows.append({"quantity": name, **law_row(values, QUANTITIES[name], replicates, progress)})
        falling = np.sort(values)[::-1]
        places = np.unique(np.geomspace(1, max(1, len(falling)), POINTS).round().astype(int))[: len(falling)]
        ranks.append(pd.DataFrame({"quantity": name, "rank": places, "value": falling[places - 1]}))
    pd.DataFrame(rows, columns=[name for name in LAWS if name not in run.named]).to_csv(
        partial / "laws.csv", index=False
    )
    pd.concat(ranks).to_csv(partial / "ranks.csv", index=False)
    pd.DataFrame({"max_cosine": max_cosines(W_dec, progress)}).to_csv(partial / "cosines.csv", index=False)


def quantities(run: Run, W_dec: ndarray) -> dict[str, ndarray]:
    """The values above 0 of each quantity of QUANTITIES."""
    latents = pd.read_csv(run.folder / "latents.csv")
    frequency = latents["frequency"].to_numpy()
    firings = frequency * run.inputs["tokens"]
    whole = np.abs(firings - firings.round()).max() < 1e-3
    require(bool(whole), f"{run.folder / 'latents.csv'}: frequencies are not shares of {run.inputs['tokens']} tokens")
    found = {"energy": latents["energy"].to_numpy(), "frequency": frequency, "firings": firings.round()}
    return {name: values[values > 0] for name, values in found.items()} | {"eigenvalue": spectrum(W_dec)}


def decoder(folder: Path) -> ndarray:
    """W_dec [d_sae, d_in] of a run, float32."""
    from safetensors import safe_open

    with safe_open(folder / "sae.safetensors", framework="numpy") as file:
        return file.get_tensor("W_dec").astype(np.float32, copy=False)


def spectrum(W_dec: ndarray) -> ndarray:
    """The eigenvalues above rounding error of the covariance [d_in, d_in] of the decoder's rows, their mean removed; falling."""
    n, d_in = W_dec.shape
    mean = W_dec.mean(0, dtype=np.float64)
    covariance = np.zeros((d_in, d_in))
    for start in range(0, n, BLOCK):
        rows = W_dec[start : start + BLOCK] - mean  # [b, d_in]
        covariance += rows.T @ rows / n
    values = np.linalg.eigvalsh(covariance)[::-1]
    return values[values > values[0] * d_in * np.finfo(np.float32).eps]


def law_row(values: ndarray, discrete: bool, replicates: int, progress: Progress) -> dict[str, Any]:
    """The columns of laws.csv from `n` on; only `n` if there are fewer than MIN_SAMPLE distinct values."""
    sample = sample_of(values, discrete)
    if len(sample.values) < MIN_SAMPLE:
        progress.advance(2 * replicates)
        return {"n": len(values)}
    law = fit(sample)
    slope, r2 = rank_size(sample)
    rng = np.random.default_rng(0)
    alphas, slopes = resampled(values, sample, replicates, rng, progress)
    far = 0
    for _ in range(replicates):
        far += fit(sample_of(synthetic(values, law, discrete, rng), discrete)).ks >= law.ks
        progress.advance()
    ratios, best = compare(sample.tail(law.xmin), law.alpha)
    row = {"n": len(values), **law._asdict(), "slope": slope, "r2": r2, "p_gof": (far + 1) / (replicates + 1)}
    row |= {"alpha_low": alphas[0], "alpha_high": alphas[1], "slope_low": slopes[0], "slope_high": slopes[1]}
    row |= {f"lr_{name}": value for name, (value, _) in ratios.items()}
    return row | {f"p_{name}": p for name, (_, p) in ratios.items()} | {"best": best, "replicates": replicates}


def resampled(
    values: ndarray, sample: Sample, replicates: int, rng: np.random.Generator, progress: Progress
) -> tuple[ndarray, ndarray]:
    """95% intervals of the exponent (xmin chosen anew each time) and of the rank-size slope, widened to hold the estimates."""
    found = []
    for _ in range(replicates):
        again = sample_of(rng.choice(values, len(values)), sample.discrete)
        found.append((fit(again).alpha, rank_size(again)[0]))
        progress.advance()
    low, high = np.quantile(np.array(found), [0.025, 0.975], axis=0)
    estimate = (fit(sample).alpha, rank_size(sample)[0])
    alphas, slopes = np.transpose([np.minimum(low, estimate), np.maximum(high, estimate)])
    return alphas, slopes


# levels


def levels_of(run: Run, runs: list[Run]) -> list[dict[str, Any]]:
    """The rows of levels.csv of one run, cut at its own prefixes or at those of nested runs of its size; none without any."""
    d_sae = run.config["sae"]["d_sae"]
    sizes = [r.config["sae"].get("prefixes") for r in (run, *runs) if r.config["sae"]["d_sae"] == d_sae]
    cuts = next((prefixes for prefixes in sizes if prefixes), [])
    latents = pd.read_csv(run.folder / "latents.csv")
    cosines = pd.read_csv(run.path / "cosines.csv")["max_cosine"]
    return level_rows(latents["frequency"].to_numpy(), latents["energy"].to_numpy(), cosines.to_numpy(), cuts)
