"""`saebench push` and `saebench pull`: a run on the Hugging Face hub, with a model card made of what the run measured."""

from __future__ import annotations

import csv
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from saebench.checks import InputError, require
from saebench.interop import hub
from saebench.sae_configs import SAE_VARIANTS
from saebench.saes.files import load_sae
from saebench.store import checksum, fault_of, key_of, lock, read_json, write_json, write_text
from saebench.verify import files_of

NEEDED = ("sae.safetensors", "sae.json", "config.yaml", "latents.csv", "done.json")
FILES = (*NEEDED, "metrics.csv", "evaluation.json", "l0.csv", "train.csv", "env.json")
SHOWN = {  # columns of metrics.csv in the card
    "view": "view", "rule": "rule", "m": "latents", "budget": "budget", "mode": "mode", "l0": "L0", "fvu": "FVU",
    "fvu_std": "FVU std", "cka_std": "CKA std", "ce_sae": "CE", "ce_clean": "CE clean", "recovered_zero": "recovered",
    "dead_fraction": "dead",
}  # fmt: skip
MOST_ROWS = 24
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*$")


def push(run: Path, repo: str, dry_run: bool = False, private: bool = False, licence: str | None = None) -> str:
    """Upload the files of a run with a card; the repository's address, or with `dry_run` the card and the files as text.

    Of absolute paths of this machine the last part is kept. Raises InputError for a run that is not whole or not evaluated.
    """
    owner, folder, revision = hub.parts_of(repo)
    require(not folder and revision is None, f"{repo}: push goes to a whole repository, owner/name")
    require(licence is None or bool(LICENCE.match(licence)), f"--licence={licence}: give an id of the hub, such as mit")
    check_run(run)
    with tempfile.TemporaryDirectory() as made:
        fill(Path(made), run, owner, licence)
        if dry_run:
            return told(Path(made), owner)
        return hub.push(Path(made), owner, private)


def check_run(run: Path) -> None:
    """Raise InputError unless a folder is a whole, evaluated run."""
    for name in NEEDED:
        require((run / name).is_file(), f"{run}: no {name} there; name the folder of a finished run")
    require(
        (run / "metrics.csv").is_file(), f"{run}: not evaluated, so its card would be empty; `saebench evaluate` it"
    )
    for name, record in read_json(run / "done.json")["files"].items():
        what = fault_of(run / name, record) if name in FILES else ""
        require(not what, f"{run / name}: {what}; `saebench verify` tells more")


def fill(folder: Path, run: Path, repo: str, licence: str | None) -> None:
    """Put all that is uploaded into a folder."""
    for name in FILES:
        if (run / name).is_file():
            shutil.copy(run / name, folder / name)
    config = public(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write_json(folder / "sae.json", public(read_json(run / "sae.json")))
    done = read_json(run / "done.json")
    kept = {name: record for name, record in done["files"].items() if name in FILES}
    for path in (folder / "config.yaml", folder / "sae.json"):
        kept[path.name] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
    write_json(folder / "done.json", done | {"files": kept, "inputs": public(done["inputs"])})
    write_text(folder / "README.md", card(folder, repo, config, licence))


def public(config: Any) -> Any:
    """A configuration without folders of this machine: of an absolute path the last part stays."""
    if isinstance(config, dict):
        return {key: "outputs" if key == "outputs" else public(value) for key, value in config.items()}
    if isinstance(config, list):
        return [public(value) for value in config]
    return Path(config).name if isinstance(config, str) and config.startswith(("/", "~")) else config


def told(folder: Path, repo: str) -> str:
    """What a dry run prints."""
    sizes = [f"{path.stat().st_size:>14,}  {path.name}" for path in sorted(folder.iterdir())]
    return "\n".join([(folder / "README.md").read_text(encoding="utf-8"), f"would upload to {repo}:", *sizes])


def card(folder: Path, repo: str, config: dict[str, Any], licence: str | None) -> str:
    """The model card of a run's files, as Markdown."""
    sae, model, data = config["sae"], config["model"], config["data"]
    about = {"library_name": "saebench", "tags": ["sparse-autoencoder", "saebench", sae["name"]]}
    about |= {"license": licence} if licence else {}
    about |= {"base_model": model["path"]} if hub.is_id(model["path"]) else {}
    told_licence = f"{licence}." if licence else "not stated: ask the owner before using it."
    described = read_json(folder / "sae.json")
    origin = f"\nImported from {config['origin']}; it was not trained by saebench.\n" if "origin" in config else ""
    settings = {key: value for key, value in sae.items() if key not in ("name", "prefix_shares") and value is not None}
    return f"""---
{yaml.safe_dump(about, sort_keys=False)}---

# {repo.partition("/")[2]}

A sparse autoencoder ({sae["name"]}, {sae["d_sae"]:,} latents) of {model["site"]}, layer {model["layer"]}, of {model["name"]}.
{origin}
| | |
|---|---|
| model | {model["name"]} (`{model["path"]}`) |
| site | {model["site"]}, layer {model["layer"]} (from 0), width {described["d_in"]:,} |
| data | {data.get("path") or data["name"]}, blocks of {data["seq_len"]} tokens |
| trained on | {trained_on(config)} |
| settings | {", ".join(f"{key} {value}" for key, value in settings.items())} |

## Use

```python
import saebench  # pip install saebench

sae = saebench.load("{repo}")
latents = sae.encode(x)  # x [n, {described["d_in"]}]: raw activations
x_hat = sae.decode(latents)
```

`saebench export {repo} DIR --to saelens` writes it for SAELens (sparsify, dictionary_learning alike).

## Measured

On held-out text, tokens whose norm is typical; BOS and special tokens are neither spliced nor scored.

{metrics_table(folder)}

FVU: fraction of variance unexplained; std: dimensions scaled to unit variance. CE: next-token cross-entropy in nats with the
reconstruction spliced in. recovered: share of the CE increase of splicing in zero that the SAE avoids.

## Licence

Of the weights: {told_licence} The language model and the text have licences of their own, which may bind what is derived.
"""


def trained_on(config: dict[str, Any]) -> str:
    """How many tokens a run was trained on."""
    if "origin" in config:
        return "not known"
    return f"{config['train']['n_tokens'] or config['data']['n_tokens']:,} tokens, seed {config['seed']}"


def metrics_table(folder: Path) -> str:
    """The rows for typical tokens that have a cross-entropy, or else all of them, at most MOST_ROWS."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["tokens"] == "typical"]
    chosen = [row for row in rows if row["ce_sae"]] or rows
    names = [name for name in SHOWN if any(row.get(name) for row in chosen)]
    lines = [[shown(row[name]) for name in names] for row in chosen[:MOST_ROWS]]
    head = [[SHOWN[name] for name in names], ["---"] * len(names)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *lines])


def shown(cell: str) -> str:
    """A cell with four decimals at most."""
    try:
        return cell if cell.isdigit() else f"{float(cell):.4f}".rstrip("0").rstrip(".")
    except ValueError:
        return cell


def pull(source: str, outputs: Path) -> Path:
    """Download a run that `push` uploaded; its folder in outputs/runs, where evaluate and tables find it.

    Raises InputError for a repository without a run, for files that differ from their checksums, and for an SAE that is damaged.
    """
    path = hub.fetch(source, FILES)
    for name in NEEDED:
        require(
            (path / name).is_file(), f"{source}: no {name} in it; only runs that `saebench push` uploaded are pulled"
        )
    described = read_json(path / "sae.json")
    variant = described.get("config", {}).get("name")
    require(variant in SAE_VARIANTS, f"{source}: sae.json: unknown variant {variant}")
    return placed(source, path, outputs / "runs" / f"{variant}-{key_of(read_json(path / 'done.json')['inputs'])}")


def placed(source: str, path: Path, folder: Path) -> Path:
    """Copy a fetched run to its place, unless it is there."""
    files = files_of(path)
    if files is None:
        raise InputError(f"{source}: done.json: does not say what the run consists of")
    for name, record in files.items():
        what = fault_of(path / name, record)
        require(not what, f"{source}: {name}: {what}")
    load_sae(path)  # raises if it is damaged
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for name in FILES:
                if (path / name).is_file():
                    shutil.copy(path / name, part / name)
            part.rename(folder)
    return folder
