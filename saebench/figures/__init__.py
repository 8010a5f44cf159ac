"""Figures: outputs/tables in, outputs/figures out. Imports matplotlib and pandas: import it only where it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from saebench.figures.curves import latent_importance, training_curves
from saebench.figures.data import Group, read_groups
from saebench.figures.laws import importance_laws
from saebench.figures.size import against_size, pruning_rules
from saebench.figures.sparsity import against_l0
from saebench.figures.style import STYLE, save
from saebench.progress import Progress, say

FIGURES: dict[str, Callable[[Group], list[Figure]]] = {
    "fvu_vs_size": partial(against_size, metric="fvu"),
    "ce_vs_size": partial(against_size, metric="ce_increase"),
    "cka_vs_size": partial(against_size, metric="cka_std"),
    "cka_plain_vs_size": partial(against_size, metric="cka"),
    "l0_vs_size": partial(against_size, metric="l0"),
    "pruning_rules": pruning_rules,
    "fvu_vs_l0": partial(against_l0, metric="fvu"),
    "ce_vs_l0": partial(against_l0, metric="ce_increase"),
    "cka_vs_l0": partial(against_l0, metric="cka_std"),
    "cka_plain_vs_l0": partial(against_l0, metric="cka"),
    "latent_importance": latent_importance,
    "importance_laws": importance_laws,
    "training_curves": training_curves,
}


def draw_figures(outputs: Path) -> list[Path]:
    """Draw every figure whose data outputs/tables holds, as PNG and PDF in outputs/figures; the files written.

    With several models, layers, sites or data sets each has files of its own; a figure of many panels goes on in
    NAME-2, NAME-3. Raises InputError if a table is missing.
    """
    groups = list(read_groups(outputs))
    folder = outputs / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with Progress(len(groups) * len(FIGURES), "figures", "figures") as progress:
        for group in groups:
            for name, draw in FIGURES.items():
                written += draw_one(group, name, draw, folder)
                progress.advance()
    return written


def draw_one(group: Group, name: str, draw: Callable[[Group], list[Figure]], folder: Path) -> list[Path]:
    """Draw and save the pages of one figure of one group; a line says so if there is nothing to draw."""
    stem = name + group.suffix
    written: list[Path] = []
    with rc_context(STYLE):
        for page, figure in enumerate(draw(group), 1):
            written += save(figure, folder / (stem if page == 1 else f"{stem}-{page}"))
    if not written:
        say(f"{stem}: nothing measured for it; not drawn")
    return written
