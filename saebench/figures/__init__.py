"""Figures: outputs/tables in, outputs/figures out. Imports matplotlib and pandas: import it only where it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from saebench.checks import one_of
from saebench.figures.claims import forest, read_claims
from saebench.figures.cost import training_cost
from saebench.figures.curves import latent_importance, training_curves
from saebench.figures.data import Group, read_groups
from saebench.figures.histogram import l0_histogram
from saebench.figures.laws import importance_laws
from saebench.figures.levels import level_statistics
from saebench.figures.points import against_trained
from saebench.figures.size import against_size, pruning_rules
from saebench.figures.sparsity import against_l0
from saebench.figures.style import STYLES, fit, save
from saebench.progress import Progress, say

FIGURES: dict[str, Callable[[Group], list[Figure]]] = {
    "fvu_vs_size": partial(against_size, metric="fvu"),
    "fvu_std_vs_size": partial(against_size, metric="fvu_std"),
    "nmse_vs_size": partial(against_size, metric="nmse"),
    "ce_vs_size": partial(against_size, metric="ce_increase"),
    "cka_vs_size": partial(against_size, metric="cka_std"),
    "cka_plain_vs_size": partial(against_size, metric="cka"),
    "rsa_vs_size": partial(against_size, metric="rsa_pearson"),
    "rsa_spearman_vs_size": partial(against_size, metric="rsa_spearman"),
    "l0_vs_size": partial(against_size, metric="l0"),
    "pruning_rules": pruning_rules,
    "fvu_vs_l0": partial(against_l0, metric="fvu"),
    "fvu_std_vs_l0": partial(against_l0, metric="fvu_std"),
    "nmse_vs_l0": partial(against_l0, metric="nmse"),
    "ce_vs_l0": partial(against_l0, metric="ce_increase"),
    "cka_vs_l0": partial(against_l0, metric="cka_std"),
    "cka_plain_vs_l0": partial(against_l0, metric="cka"),
    "rsa_vs_l0": partial(against_l0, metric="rsa_pearson"),
    "rsa_spearman_vs_l0": partial(against_l0, metric="rsa_spearman"),
    "l0_histogram": l0_histogram,
    "points_fvu": partial(against_trained, metric="fvu"),
    "points_fvu_std": partial(against_trained, metric="fvu_std"),
    "points_ce": partial(against_trained, metric="ce_increase"),
    "points_cka": partial(against_trained, metric="cka_std"),
    "latent_importance": latent_importance,
    "importance_laws": importance_laws,
    "levels": level_statistics,
    "training_curves": training_curves,
    "training_cost": training_cost,
}


def draw_figures(outputs: Path, style: str = "screen") -> list[Path]:
    """Draw every figure whose data outputs/tables and claims.csv hold, as PNG and PDF in outputs/figures; the files written.

    The style `paper` draws the same for a paper, as PDF in outputs/figures/paper: one column wide (claims, with their long
    names, two), in 8 pt; what stands above the panels otherwise, for the caption, is the PDF's subject.

    With several models, layers, sites or data sets each has files of its own; a figure of many panels goes on in
    NAME-2, NAME-3. Raises InputError if a table is missing.
    """
    one_of("figures.style", style, tuple(STYLES))
    figures: list[tuple[str, Callable[[], list[Figure]]]] = [
        (name + group.suffix, partial(draw, group)) for group in read_groups(outputs) for name, draw in FIGURES.items()
    ]
    figures += [(claim.name, partial(forest, claim)) for claim in read_claims(outputs)]
    folder = outputs / "figures" / ("paper" if style == "paper" else "")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with Progress(len(figures), "figures", "figures") as progress:
        for stem, draw in figures:
            written += draw_one(stem, draw, folder, style)
            progress.advance()
    return written


def draw_one(stem: str, draw: Callable[[], list[Figure]], folder: Path, style: str = "screen") -> list[Path]:
    """Draw and save the pages of one figure; a line says so if there is nothing to draw."""
    written: list[Path] = []
    kinds = ("pdf",) if style == "paper" else ("png", "pdf")
    with rc_context(STYLES[style]):
        for page, figure in enumerate(draw(), 1):
            note = fit(figure) if style == "paper" else ""
            written += save(figure, folder / (stem if page == 1 else f"{stem}-{page}"), kinds, note)
    if not written:
        say(f"{stem}: nothing measured for it; not drawn")
    return written
