"""Tables of every finished run: outputs/runs in, outputs/tables out. Imports pandas: import it only where it is used.

A configuration is all that was asked of a run but its seeds: the columns of CONFIGURATION and every other config key
that differs between runs of one model, layer, site and data set. Means and spreads are over a configuration's seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saebench.checks import require
from saebench.config import flatten
from saebench.finished import (
    finished_runs,
    gather_histograms,
    gather_lines,
    parse,
    parsed,
    plain_csv,
    read_latents,
    require_columns,
    thin,
)
from saebench.interpreted import by_view, write_interpretability
from saebench.probed import SCORES as PROBED
from saebench.probed import by_view as probed_by_view
from saebench.probed import write_probing
from saebench.runconfig import read_config
from saebench.sae_configs import with_neutral
from saebench.store import read_mapping, write_text

PLACE = ["model", "layer", "site", "data"]
SPARSITY = ["k", "coefficient", "target_l0"]
CONFIGURATION = ["variant", *PLACE, "d_sae", *SPARSITY]
SEEDS = ["seed", "order_seed"]
VIEW = ["view", "rule", "order", "m", "budget", "mode", "tokens"]
MEASURES = {  # column: heading, decimals
    "l0": ("L0", 1),
    "fvu": ("FVU", 4),
    "fvu_std": ("FVU std", 4),
    "cka": ("CKA", 4),
    "cka_std": ("CKA std", 4),
    "ce_increase": ("CE increase", 4),
    "recovered_zero": ("recovered", 4),
    "dead_fraction": ("dead", 4),
    "nmse": ("NMSE", 4),
    "rsa_pearson": ("RSA", 4),
    "rsa_spearman": ("RSA rank", 4),
}
SCORES = {  # of interpretability, where `saebench interpret` made them: the mean over strata of frequency
    "detection": ("detection", 3),
    "fuzzing": ("fuzzing", 3),
    "simulation": ("simulation", 3),
    "intruder": ("intruder", 3),
    "coherence": ("coherence", 3),
    "probe": ("probe", 3),
    "token_purity": ("token purity", 3),
    "previous_token_purity": ("previous token purity", 3),
    "document_purity": ("document purity", 3),
    "consistency": ("consistency", 3),
} | PROBED
SCORED = {"interpretability": by_view, "probing": probed_by_view}  # tables of scores, each with its scores by view
COLUMNS = [*(n for n in CONFIGURATION if n != "target_l0"), *SEEDS, *VIEW, *(n for n in MEASURES if n != "ce_increase")]
COLUMNS += ["ce_clean", "ce_sae"]  # of metrics.csv
UNSHOWN = ("cka", "nmse", "rsa_pearson", "rsa_spearman")  # in result_table
CAPTION = (
    "Mean ± sd over n runs. std: dimensions scaled to unit variance. CE increase: nats over the clean model.\n"
    "recovered: share of the CE increase of splicing in zero that the SAE avoids. dead: share of the latents."
)
NAMED = {"sae.name", "model.name", "model.layer", "model.site", "data.name", "sae.d_sae", "sae.k", "sae.target_l0"}
ASKED = ("sizes", "rules", "orders", "scale_k", "budgets", "cross", "ce_views", "logit_chunk")  # which rows, not what
WITHOUT_EFFECT = {  # on any one row of metrics.csv
    *(
        "seed",
        "train.order_seed",
        "device",
        "compile",
        "shard",
        "checkpoint",
        "outputs",
        "cache",
        "train.log_every",
        "train.lm_device",
        "sae.prefix_shares",
    ),
    *("experiment", *(f"experiment.{key}" for key in ("name", "grids", "claims", "lr_factors"))),
    *(f"evaluate.{key}" for key in ASKED),
}
MARKDOWN_ROWS = 2000  # more than anybody reads
WIDTH = 120  # columns of result_table


def write_tables(outputs: Path) -> list[Path]:
    """Write outputs/tables from every finished run of outputs/runs; its files. Raises InputError if there is none."""
    folders = finished_runs(outputs)
    measured = gather_lines(folders, "metrics.csv")
    metrics = parsed(measured, folders, "metrics.csv")
    require_columns(metrics, COLUMNS, folders[0] / "metrics.csv")
    require(not metrics.empty, f"outputs={outputs}: no run has any row in metrics.csv; run `saebench evaluate`")
    runs = configurations(metrics, read_configs(folders))
    texts = {"metrics.csv": measured, "curves.csv": gather_lines(folders, "train.csv", thin)}
    texts |= {"l0.csv": gather_histograms(folders)}
    texts["latents.csv"] = plain_csv(read_latents(folders))
    tables = {"runs.csv": runs}
    scored = [*write_interpretability(outputs, folders), *write_probing(outputs, folders)]
    rows = with_scores(with_configuration(metrics, runs), scored)
    keys = list(runs.columns.drop(["run", *SEEDS]))
    views = summarise(rows, [*keys, *VIEW])
    summary = summarise(rows.loc[rows["view"] == "full"], [*keys, "mode", "tokens"])
    tables |= {"summary.csv": summary, "views.csv": views}
    texts |= {name: table.to_csv(index=False) for name, table in tables.items()}
    texts |= {"summary.md": markdown(summary), "views.md": markdown(views)}
    folder = outputs / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return sorted([*(folder / name for name in texts), *scored])


def read_table(outputs: Path, name: str) -> pd.DataFrame:
    """outputs/tables/NAME.csv: whole numbers nullable, config keys as text. Raises InputError if it is not there."""
    path = outputs / "tables" / f"{name}.csv"
    require(path.is_file(), f"outputs={outputs}: no {path}; run `saebench tables` first")
    return parse(path.read_text(encoding="utf-8"))


def result_table(outputs: Path) -> str:
    """outputs/tables/summary.csv (tokens typical, if there are such rows) as aligned text, WIDTH columns or less."""
    summary = read_table(outputs, "summary")
    typical = summary["tokens"] == "typical"
    shown = summary.loc[typical] if bool(typical.any()) else summary
    shown = shown.assign(sparsity=shown.apply(sparsity, axis=1))
    several = varying(shown)
    fixed = [f"{name} {shown[name].iloc[0]}" for name in [*PLACE, "tokens"] if name not in several]
    keys = [*(key for key in several if key not in SPARSITY), "sparsity"]
    measured = [name for name in measures(shown) if name not in UNSHOWN and max(shown[f"{name}_count"]) > 0]
    require(bool(measured), f"outputs={outputs}: no run has a measured full view; run `saebench evaluate`")
    cuts = [measured[:n] for n in range(len(measured), 0, -1)]
    layouts = [*((names, True) for names in cuts[:3]), *((names, False) for names in cuts)]
    texts = [align(display(shown, keys, names, spread, 3)) for names, spread in layouts]
    table = next((text for text in texts if text.index("\n") <= WIDTH), texts[-1])
    return "\n".join([", ".join(fixed), table, CAPTION])


# what tells configurations apart


def read_configs(folders: list[Path]) -> pd.DataFrame:
    """Every config key of every run as text [runs, keys], indexed by run; missing where a variant has no such key.

    A run's config.yaml says how it was evaluated at first; what its metrics.csv comes from stands in evaluation.json.
    """
    configs = [read_config(folder / "config.yaml") for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if (folder / "evaluation.json").is_file():
            config["evaluate"] = read_mapping(folder / "evaluation.json").get("evaluate")
    return pd.DataFrame([flatten(normal(config)) for config in configs], index=[folder.name for folder in folders])


def normal(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what other columns say: prefixes as shares of d_sae, no coefficient that has a column."""
    sae = with_neutral(config["sae"])
    if sae.get("prefixes"):
        sae["prefixes"] = [f"{p / sae['d_sae']:g}" for p in sae["prefixes"]]
    if sae.get("target_l0") is None:  # then the coefficient is a column of metrics.csv
        sae = {key: value for key, value in sae.items() if key not in ("l1", "l0")}
    if "origin" in config:  # imported: nothing is known of its training
        config = {key: value for key, value in config.items() if key not in ("train", "sparsity")}
    return {"origin": "trained", **config, "sae": sae}


def configurations(metrics: pd.DataFrame, configs: pd.DataFrame) -> pd.DataFrame:
    """One row per run: run, the number of its configuration (from 1), what tells it from others, and its seeds."""
    target = pd.to_numeric(configs.get("sae.target_l0", pd.Series(index=configs.index, dtype=str)), errors="coerce")
    runs = metrics.drop_duplicates("run").set_index("run").assign(target_l0=target)
    runs["coefficient"] = runs["coefficient"].mask(runs["target_l0"].notna())  # steered: a result, not a choice
    others = configs.drop(columns=[*(NAMED | WITHOUT_EFFECT)], errors="ignore").loc[runs.index]
    values = others.groupby([runs[name] for name in PLACE]).nunique().max()
    keys = [*CONFIGURATION, *values.index[values > 1]]
    runs = pd.concat([runs[[*CONFIGURATION, *SEEDS]], others], axis=1)
    runs.insert(0, "configuration", runs.groupby(keys, dropna=False, sort=True).ngroup() + 1)
    shown = runs.loc[:, ["configuration", *keys, *SEEDS]].rename_axis("run")
    return shown.sort_values(by=["configuration", *SEEDS]).reset_index()


def with_configuration(metrics: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics beside their run's configuration, one row for each view of a run."""
    rows = metrics.assign(ce_increase=metrics["ce_sae"] - metrics["ce_clean"]).drop_duplicates(["run", *VIEW])
    return rows[["run", *VIEW, *MEASURES]].merge(runs, on="run", validate="many_to_one")


def with_scores(rows: pd.DataFrame, scored: list[Path]) -> pd.DataFrame:
    """The rows with a column for each score of SCORES that any view has; `scored` are the tables of them."""
    keys = ["run", *(name for name in VIEW if name != "tokens")]
    for path in scored:
        if path.stem in SCORED:
            scores = SCORED[path.stem](parse(path.read_text(encoding="utf-8")))
            rows = rows.merge(scores[[*keys, *(name for name in SCORES if name in scores)]], on=keys, how="left")
    return rows


def measures(table: pd.DataFrame) -> list[str]:
    """The columns of a table that measure something."""
    return [*MEASURES, *(name for name in SCORES if name in table)]


def summarise(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean, sd (n - 1; missing for one run) and count of every measure over the runs that agree in `keys`."""
    groups = rows.groupby(keys, dropna=False, sort=True)
    table = groups[measures(rows)].agg(["mean", "std", "count"])
    table.columns = [
        name if part == "mean" else f"{name}_{'sd' if part == 'std' else part}" for name, part in table.columns
    ]
    table.insert(0, "runs", groups["run"].nunique())
    return table.reset_index()


# showing


def varying(summary: pd.DataFrame) -> list[str]:
    """The key columns a reader needs: variant, d_sae, and what splits rows that agree in everything else shown.

    A learning rate counts last, as a search may have chosen it for each of the other keys' values.
    """
    keys: list[str] = [str(name) for name in summary.columns[1 : summary.columns.get_loc("runs")]]
    minor = [key for key in keys if "." in key or key == "mode"]
    major = [key for key in keys if key not in minor]
    values: dict[str, int] = {key: len(summary[key].drop_duplicates()) for key in major}
    told = [key for key in major if values[key] > 1 or key in ("variant", "d_sae")]
    for key in sorted(minor, key=lambda key: key == "train.lr"):
        others = [*major, *(name for name in told if name in minor)]
        most: Any = summary.groupby(others, dropna=False)[key].nunique(dropna=False).max()
        if most > 1:
            told.append(key)
    return [key for key in keys if key in told]


def missing(value: Any) -> bool:
    """Whether a cell is empty."""
    return value is None or value is pd.NA or value != value  # nan; pd.isna is five times as slow


def sparsity(row: Any) -> str:
    """What sets how many latents are active: k, the L0 a penalty is steered to, or its coefficient."""
    for name, text in (("k", "k"), ("target_l0", "L0"), ("coefficient", "coef")):
        if not missing(row[name]):
            return f"{text} {row[name]:g}"
    return ""


def display(table: pd.DataFrame, keys: list[str], measures: list[str], spread: bool, decimals: int) -> pd.DataFrame:
    """A table of text: the key columns, the number of runs, and each measure as mean ± sd."""
    shown = {key.split(".")[-1]: table[key].map(cell) for key in keys} | {"n": table["runs"].map(str)}
    for name in measures:
        heading, most = (MEASURES | SCORES)[name]
        means = table[name].tolist()  # of Python's numbers, which are formatted faster
        sds = table[f"{name}_sd"].tolist() if spread else [np.nan] * len(table)
        shown[heading] = pd.Series(
            [number(mean, sd, min(most, decimals)) for mean, sd in zip(means, sds, strict=True)], index=table.index
        )
    return pd.DataFrame(shown)


def cell(value: Any) -> str:
    """A key as text: nothing for a missing one, no .0 behind whole numbers."""
    return "" if missing(value) else f"{value:g}" if isinstance(value, float) else str(value)


def number(mean: float, sd: float, decimals: int) -> str:
    """mean ± sd, the sd left out if missing; nothing if the mean is."""
    if missing(mean):
        return ""
    return f"{mean:.{decimals}f}" if missing(sd) else f"{mean:.{decimals}f} ±{sd:.{decimals}f}"


def align(table: pd.DataFrame) -> str:
    """Columns padded to equal width, text to the left and figures to the right, two spaces between."""
    columns = [[name, *table[name]] for name in table]
    widths = [max(map(len, column)) for column in columns]
    sides = ["<" if name == "variant" else ">" for name in table]
    lines = (zip(line, sides, widths, strict=True) for line in zip(*columns, strict=True))
    return "\n".join("  ".join(f"{text:{side}{width}}" for text, side, width in line) for line in lines)


def markdown(table: pd.DataFrame) -> str:
    """The first MARKDOWN_ROWS of the table as Markdown, with every key column that holds anything."""
    keys = [key for key in table.columns[: table.columns.get_loc("runs")] if len(table[key].dropna())]
    shown = display(table.head(MARKDOWN_ROWS), keys, measures(table), True, 4)
    left = len(table) - len(shown)
    more = f"\n{left:,} more rows are in the CSV file beside this one.\n" if left else ""
    lines = [list(shown), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n{more}\n{CAPTION}\n"
