"""Plausible run directories made of formulas, for the tests of tables and figures; nothing here is a result."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

COLUMNS = """
run variant model layer site data seed order_seed d_in d_sae k coefficient view rule order m budget mode tokens n_tokens
ce_tokens l0 l0_p05 l0_p95 mse nmse fvu fvu_std cosine ce_clean ce_sae ce_zero ce_mean recovered_zero recovered_mean kl
cka cka_std rsa_pearson rsa_spearman dead_fraction cka_latents rsa_latents_pearson rsa_latents_spearman
"""
VARIANTS = ("relu", "jumprelu", "topk", "batchtopk", "matryoshka", "hierarchical")
MODES = {"topk": "topk", "hierarchical": "topk", "lattice": "topk"}
SKILL = {
    "relu": 1.5,
    "jumprelu": 1.1,
    "topk": 1.05,
    "batchtopk": 1.0,
    "matryoshka": 1.08,
    "hierarchical": 1.04,
    "lattice": 1.06,
}
RULES = {
    "energy": (1.0, -0.45),
    "frequency": (1.04, -0.47),
    "norm_energy": (0.98, -0.44),
    "decoder_norm": (1.15, -0.6),
    "random": (1.2, -0.7),
    "": (1.1, -0.8),
}
SHARES = (0.0625, 0.125, 0.25, 0.5)
BUDGETS = (4, 8, 16, 32)


def config_of(variant: str, d_sae: int, k: int, seed: int) -> dict[str, Any]:
    """The part of a RunConfig that tables read, as plain dictionaries."""
    sae: dict[str, Any] = {"name": variant, "d_sae": d_sae, "input": "dataset"}
    sae |= {"l1": 0.05, "target_l0": float(k)} if variant in ("relu", "jumprelu") else {"k": k}
    if variant == "matryoshka":
        sae |= {"prefixes": [int(d_sae * s) for s in (*SHARES, 1)], "prefix_shares": [*SHARES, 1.0]}
    return {
        "model": {"name": "tiny-gpt2", "layer": 2, "site": "resid_post"},
        "data": {"name": "python-docs", "n_tokens": 600_000},
        "sae": sae,
        "sparsity": {"name": "constant"},
        "train": {"lr": None, "batch_size": 2048, "order_seed": 0},
        "evaluate": {"sizes": list(SHARES), "ce_tokens": 8192},
        "experiment": {"name": "", "grids": []},
        "seed": seed,
        "outputs": f"outputs-{seed}",
    }


def write_run(
    outputs: Path,
    variant: str = "topk",
    d_sae: int = 256,
    k: int = 16,
    seed: int = 0,
    done: bool = True,
    **changes: Any,
) -> Path:
    """Write a run directory and return it; `changes` are config keys with __ for the dot (train__lr=0.01)."""
    config = config_of(variant, d_sae, k, seed)
    for key, value in changes.items():
        *groups, name = key.split("__")
        (config[groups[0]] if groups else config)[name] = value
    tag = "-".join(f"{key}{value}" for key, value in changes.items()).replace("/", "")
    run = outputs / "runs" / f"{variant}-{d_sae}-{k}-{seed}{tag}"
    run.mkdir(parents=True)
    rng = np.random.default_rng([VARIANTS.index(variant) if variant in VARIANTS else 99, d_sae, k, seed])
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = metrics_of(config, run.name, rng)
    pd.DataFrame(rows, columns=pd.Index(COLUMNS.split())).to_csv(run / "metrics.csv", index=False)
    train_of(variant, d_sae, k, rng).to_csv(run / "train.csv", index=False)
    latents_of(d_sae, k, rng).to_csv(run / "latents.csv", index=False)
    histograms_of(rows, rng).to_csv(run / "l0.csv", index=False)
    if done:
        (run / "done.json").write_text(json.dumps({"inputs": {}}))
    return run


def views_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every view of a run with its made-up L0 and FVU."""
    variant, d_sae = config["sae"]["name"], config["sae"]["d_sae"]
    k, mode = config["sae"].get("k"), MODES.get(variant, "threshold")
    target = k or config["sae"]["target_l0"] or 20.0
    full = 0.9 * SKILL.get(variant, 1.0) * d_sae**-0.2 * target**-0.3
    whole = {"view": "full", "m": d_sae, "budget": k, "mode": mode, "l0": target, "fvu": full}
    exact = [whole | {"mode": "batch", "fvu": full * 0.99}] if mode == "threshold" and k else []
    cuts = cuts_of(whole, "batch" if exact else mode, variant == "matryoshka")
    nested = variant in ("hierarchical", "lattice")
    crossed = crossed_of(whole) if variant == "lattice" else []
    return [whole, *exact, *cuts, *crossed, *budgets_of(whole, 0.35 if nested else 0.8)]


def cuts_of(whole: dict[str, Any], mode: str, nested: bool) -> list[dict[str, Any]]:
    """Prefix and pruned views at every share, by every rule and order, with k as trained and scaled."""
    views = []
    for share in SHARES:
        for rule, (worse, power) in RULES.items():
            view = {"view": "pruned" if rule else "prefix", "rule": rule or None, "m": int(share * whole["m"])}
            fvu = whole["fvu"] * worse * share ** (-0.35 if nested and not rule else power)
            select = {"order": "select_then_prune", "l0": whole["l0"] * share**0.4, "fvu": fvu * 1.15}
            views.append(whole | view | select)
            if whole["budget"]:
                prune = whole | view | {"order": "prune_then_select", "mode": mode}
                scaled = max(1, round(whole["budget"] * share))
                views += [prune | {"fvu": fvu}, prune | {"budget": scaled, "l0": scaled, "fvu": fvu * share**-0.3}]
    return views


def crossed_of(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Prefixes at every share with every budget, each token selecting among what is kept."""
    views = []
    for share in SHARES:
        for j in (b for b in BUDGETS if b < whole["budget"]):
            fvu = whole["fvu"] * share**-0.3 * (whole["budget"] / j) ** 0.4
            view = {"view": "prefix", "m": int(share * whole["m"]), "order": "prune_then_select", "budget": j}
            views.append(whole | view | {"mode": "topk", "l0": j, "fvu": fvu})
    return views


def budgets_of(whole: dict[str, Any], steep: float) -> list[dict[str, Any]]:
    """Budget views below the trained L0, by each token's largest latents and by a threshold."""
    views = []
    for j in (b for b in BUDGETS if b < whole["l0"]):
        for mode, power in (("topk", steep), ("threshold", 0.9 * steep)):
            fvu = whole["fvu"] * (whole["l0"] / j) ** power
            views.append(whole | {"view": "budget", "budget": j, "mode": mode, "l0": j, "fvu": fvu})
    return views


def metrics_of(config: dict[str, Any], run: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two rows (typical, all) for every view."""
    sae, rows = config["sae"], []
    fixed = {"run": run, "variant": sae["name"], "d_in": 64, "d_sae": sae["d_sae"], "k": sae.get("k")}
    fixed |= {"coefficient": sae.get("l1"), "seed": config["seed"], "order_seed": config["train"]["order_seed"]}
    fixed |= {"model": config["model"]["name"], "layer": config["model"]["layer"], "site": config["model"]["site"]}
    for view in views_of(config):
        noise = float(rng.normal(1, 0.02))
        for tokens, factor in (("typical", 1.0), ("all", 0.8)):
            fvu = view["fvu"] * factor * noise
            measured = {
                "fvu": fvu,
                "fvu_std": min(1.2 * fvu, 1.0),
                "cka": 1 - 0.01 * fvu,
                "cka_std": 1 - 0.8 * min(fvu, 1),
                "rsa_pearson": 1 - 0.7 * min(fvu, 1),
                "rsa_spearman": 1 - 0.75 * min(fvu, 1),
            }
            ce = {"ce_clean": 3.2, "ce_sae": 3.2 + 2.5 * fvu**1.5, "ce_zero": 9.0, "ce_mean": 8.0, "ce_tokens": 8192}
            ce["recovered_zero"] = (9.0 - ce["ce_sae"]) / 5.8
            measured |= ce if view.get("rule") in ("energy", None) else {}
            rows.append(
                fixed | {"data": config["data"]["name"], "tokens": tokens, "n_tokens": 40_000} | view | measured
            )
            rows[-1] |= {"l0": view["l0"] * noise, "dead_fraction": 0.03 * noise}
    return rows


def histograms_of(rows: list[dict[str, Any]], rng: np.random.Generator) -> pd.DataFrame:
    """Active latents per token in the full views: all alike with topk, else spread about the mean; BOS has few."""
    parts = []
    for row in (row for row in rows if row["view"] == "full" and row["tokens"] == "typical"):
        mean = row["budget"] if row["mode"] == "topk" else row["l0"] * rng.lognormal(-0.1, 0.45, 5000)
        found, tokens = np.unique(np.round(np.broadcast_to(mean, 5000)).astype(int), return_counts=True)
        named = {"view": "full", "budget": row["budget"], "mode": row["mode"]}
        parts.append(pd.DataFrame(named | {"group": "typical", "l0": found, "tokens": tokens}))
        parts.append(pd.DataFrame([named | {"group": "special", "l0": int(row["l0"]) // 4, "tokens": 40}]))
    return pd.concat(parts, ignore_index=True)


def train_of(variant: str, d_sae: int, k: int, rng: np.random.Generator) -> pd.DataFrame:
    """A falling training curve of 300 logged steps."""
    step = np.arange(10, 3010, 10)
    fvu = (
        0.9
        * SKILL.get(variant, 1.0)
        * d_sae**-0.2
        * k**-0.3
        * (1 + 8 * np.exp(-step / 200))
        * rng.normal(1, 0.02, len(step))
    )
    sparse = k * (1 + (9 * np.exp(-step / 300) if variant in ("relu", "jumprelu") else 0 * step))
    dead = 0.05 * (1 - np.exp(-step / 800)) * rng.normal(1, 0.05) * d_sae
    columns = {"step": step, "tokens": step * 2048, "loss": fvu * 0.9, "fvu": fvu, "l0": sparse, "dead": dead}
    seconds = step * 2048 * 1e-9 * d_sae * rng.normal(1, 0.05)
    return pd.DataFrame(columns | {"lr": 1e-3, "tokens_per_s": 1e5, "seconds": seconds})


def latents_of(d_sae: int, k: int, rng: np.random.Generator) -> pd.DataFrame:
    """Frequencies and energies along a power law with a few dead latents."""
    rank = rng.permutation(d_sae) + 1.0
    frequency = np.minimum(k / 6 * rank**-0.9, 1.0) * (rank < 0.97 * d_sae)
    energy = frequency * rng.lognormal(0, 0.4, d_sae)
    return pd.DataFrame({"latent": np.arange(d_sae), "frequency": frequency, "energy": energy, "decoder_norm": 1.0})


def write_levels(outputs: Path) -> None:
    """Write tables/levels.csv from tables/runs.csv: groups between SHARES, decaying in a Matryoshka SAE; relu has none."""
    rows = []
    for run in pd.read_csv(outputs / "tables" / "runs.csv").to_dict("records"):
        ends = [0, *(int(run["d_sae"] * share) for share in (*SHARES, 1))]
        groups = [] if run["variant"] == "relu" else list(pairwise(ends))
        for level, (first, last) in [*enumerate(groups), ("all", (0, run["d_sae"]))]:
            fall = (last / run["d_sae"]) ** -0.5 if run["variant"] == "matryoshka" else 1.0
            measured = {
                "frequency": 0.01 * fall,
                "energy": 0.02 * fall,
                "dead": 0.01,
                "max_cosine": 0.3 + 0.01 * run["seed"],
            }
            named = {"run": run["run"], "seed": run["seed"], "variant": run["variant"]}
            rows.append(named | {"level": level, "first": first, "last": last} | measured)
    pd.DataFrame(rows).to_csv(outputs / "tables" / "levels.csv", index=False)


def write_grid(outputs: Path, ks: tuple[int, ...] = (16, 32)) -> None:
    """Six variants, two sizes, two seeds, each of `ks`."""
    for variant in VARIANTS:
        for d_sae in (256, 1024):
            for k in ks:
                for seed in (0, 1):
                    write_run(outputs, variant, d_sae, k, seed)
