"""How every figure looks: one colour, marker and dash per variant, a grid of panels, axes, series, and saving."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator


class Look(NamedTuple):
    """A variant's name in print, its colour, marker and dashes, whether it is trained on prefixes, and its opacity."""

    name: str
    colour: str
    marker: str
    dash: Any
    nested: bool = False
    alpha: float = 1.0


DASHES = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1)), (0, (7, 1.5, 1, 1.5, 1, 1.5))]
LOOKS = {  # colours of Okabe and Ito, told apart by the colour-blind
    "topk": Look("TopK", "#0072B2", "o", DASHES[0]),
    "multitopk": Look("MultiTopK", "#332288", ">", DASHES[5]),
    "batchtopk": Look("BatchTopK", "#E69F00", "s", DASHES[1]),
    "matryoshka": Look("Matryoshka", "#009E73", "D", DASHES[0], nested=True),
    "hierarchical": Look("HierarchicalTopK", "#D55E00", "^", DASHES[3]),
    "jumprelu": Look("JumpReLU", "#CC79A7", "P", DASHES[4]),
    "relu": Look("ReLU", "#595959", "v", DASHES[2]),
    "lattice": Look("Lattice", "#56B4E9", "X", DASHES[5], nested=True),
    "gated": Look("Gated", "#882255", "h", DASHES[4]),
}
OTHERS = [("#117733", "<"), ("#999933", "p"), ("#AA4499", "*"), ("#661100", "d"), ("#44AA99", "8")]
NAMES = {
    "fvu": "variance unexplained (FVU)",
    "fvu_std": "FVU, dimensions scaled\nto unit variance",
    "nmse": "normalised MSE\n(in the trained space)",
    "ce_increase": "CE increase over\nclean (nats)",
    "cka": "CKA",
    "cka_std": "CKA, dimensions scaled\nto unit variance",
    "rsa_pearson": "RSA (Pearson)",
    "rsa_spearman": "RSA (Spearman)",
    "l0": "L0 (latents per token)",
    "m": "dictionary size m (latents)",
}
BOUNDED = ("cka", "cka_std", "rsa_pearson", "rsa_spearman")  # at most 1: never on a logarithmic axis
INK = "#333333"
PANEL = (2.4, 1.85)  # inches
ROW_LETTERS = 26  # of a row's title, turned beside its panels, before it breaks
STYLE: dict[Any, Any] = {
    **{"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7.5, "figure.labelsize": 8.5},
    **{"xtick.labelsize": 7, "ytick.labelsize": 7, "axes.linewidth": 0.6, "xtick.major.width": 0.6},
    **{"ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "lines.linewidth": 1.2},
    **{"lines.markersize": 4, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True},
    **{"axes.axisbelow": True, "grid.color": "#E5E5E5", "grid.linewidth": 0.5, "legend.frameon": False},
    **{"figure.titlesize": 8, "figure.dpi": 200, "savefig.dpi": 200, "pdf.fonttype": 42, "legend.handlelength": 2.8},
    "figure.figsize": (40.0, 40.0),  # the most that a figure may take: its width is the room there is
}
COLUMN = 3.25  # inches: a column of a two-column paper
ROW = 1.35  # inches: a row of its panels
LETTER, BOLD, LINE = 0.062, 0.08, 0.17  # inches: a letter, a bold one and a line of 8 pt type
PAPER: dict[Any, Any] = STYLE | {
    **{"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 8, "figure.labelsize": 8},
    **{
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "lines.linewidth": 1.0,
        "lines.markersize": 3,
        "legend.handlelength": 2.0,
    },
    **{"legend.columnspacing": 1.0, "text.usetex": False, "figure.figsize": (COLUMN, 9.0)},
}
STYLES = {"screen": STYLE, "paper": PAPER}


def look(variant: str) -> Look:
    """The look of a variant; one that LOOKS does not know gets its own colour and marker from its name alone."""
    colour, marker = OTHERS[zlib.crc32(variant.encode()) % len(OTHERS)]
    return LOOKS.get(variant, Look(variant, colour, marker, DASHES[0]))


def order_of(variant: str) -> tuple[int, str]:
    """Sorts variants as LOOKS lists them, unknown ones last."""
    return (list(LOOKS).index(variant) if variant in LOOKS else len(LOOKS), variant)


def grid(rows: int, columns: int, note: str, share_y: Literal["all", "col"] = "all") -> tuple[Figure, np.ndarray]:
    """A figure of rows x columns panels with a note above them; the axes as an array [rows, columns]."""
    width, height = PANEL
    room = rcParams["figure.figsize"][0]
    if width * columns + 0.6 > room:
        width = (room - 0.6) / columns
        height = ROW
    figure = Figure(figsize=(width * columns + 0.6, height * rows + 1.4), layout="constrained")
    width = int(17 * figure.get_figwidth())  # letters
    figure.suptitle("\n".join(fill(line, width) for line in note.splitlines()), x=0.01, ha="left", color=INK)
    return figure, figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False)


def series(
    ax: Axes, table: pd.DataFrame, x: str, y: str, shown: Look, label: str, filled: bool = True, width: float = 1.2
) -> None:
    """Draw y against x in the look `shown`, error bars of one sd where it is known; width 0 draws markers alone."""
    sd = table[f"{y}_sd"].fillna(0).to_numpy()
    ax.errorbar(
        table[x].to_numpy(dtype=float),
        table[y].to_numpy(dtype=float),
        yerr=sd if sd.any() else None,
        color=shown.colour,
        alpha=shown.alpha,
        marker=shown.marker,
        linestyle=shown.dash if width else "none",
        linewidth=width,
        markerfacecolor=shown.colour if filled else "white",
        capsize=1.5,
        elinewidth=0.8,
        label=label,
    )


def band(ax: Axes, x: Any, mean: Any, sd: Any, shown: Look, label: str) -> None:
    """Draw a line, and a band of one sd around it where it is known."""
    ax.plot(x, mean, color=shown.colour, alpha=shown.alpha, linestyle=shown.dash, label=label)
    if np.isfinite(sd).any():
        ax.fill_between(x, mean - sd, mean + sd, color=shown.colour, alpha=0.2, linewidth=0)


def head(axes: np.ndarray, columns: Iterable[str], rows: Iterable[str]) -> None:
    """Write a title above each column of panels and one, turned, to the right of each row."""
    for ax, text in zip(axes[0], columns, strict=True):
        ax.set_title("\n".join(fill(line, letters(ax)) for line in text.splitlines()))
    for ax, text in zip(axes[:, -1], rows, strict=True):
        lines = fill(text, ROW_LETTERS if rcParams["figure.figsize"][0] > COLUMN else int(ROW / BOLD))
        ax.annotate(lines, (1.02, 0.5), xycoords="axes fraction", rotation=270, va="center", fontweight="bold")


def blank(ax: Axes, text: str) -> None:
    """Put a sentence where a panel has nothing to show."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=INK)


def name_axes(axes: np.ndarray, x: str, y: str | None) -> None:
    """Name the x axis below the last panel of each column, and the y axis beside the first of each row unless it is None."""
    for column in axes.T:
        last = [ax for ax in column if ax.axison][-1]
        last.tick_params(labelbottom=True)
        last.set_xlabel(x)
    for ax in axes[:, 0] if y is not None else ():
        ax.set_ylabel(y)


def values(axes: Iterable[Axes], axis: str) -> np.ndarray:
    """Every finite x or y value drawn as a line or a marker in `axes`."""
    drawn = [getattr(line, f"get_{axis}data")() for ax in axes for line in ax.get_lines()]
    found = np.concatenate([np.asarray(data, dtype=float) for data in drawn] or [np.empty(0)])
    return found[np.isfinite(found)]


def scale(axes: Iterable[Axes], axis: str, base: int = 10) -> None:
    """Make an axis logarithmic if its values are positive and span more than a factor of 3; plain numbers as labels."""
    axes = list(axes)
    found = values(axes, axis)
    if not len(found) or found.min() <= 0 or found.max() <= 3 * found.min():
        return
    wide = found.max() > 50 * found.min()
    few = axis == "x" and letters(axes[0]) < 20  # no room for more labels
    locator = LogLocator(
        base=base, subs=(1.0,) if base == 2 or wide or few else (1.0, 2.0, 5.0), numticks=3 if few else 7
    )
    for ax in axes:
        getattr(ax, f"set_{axis}scale")("log", base=base)
        ruler = getattr(ax, f"{axis}axis")
        ruler.set_major_locator(locator)
        ruler.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ruler.set_minor_locator(NullLocator())


def letters(ax: Axes) -> int:
    """About how many letters fit above a panel."""
    place = ax.get_subplotspec()
    assert place is not None
    figure = ax.get_figure(root=True)
    assert figure is not None
    return max(8, int((figure.get_figwidth() - 0.6) / place.get_gridspec().ncols / LETTER))


def decades(ax: Axes, axis: Literal["x", "y"]) -> None:
    """Label at most six powers of ten of a logarithmic axis, without ticks between: many ticks are slow to lay out."""
    ruler = getattr(ax, f"{axis}axis")
    ruler.set_major_locator(LogLocator(numticks=6))
    ruler.set_minor_locator(NullLocator())


def legend(figure: Figure, entries: Iterable[Line2D | Patch]) -> None:
    """One legend below the panels, in as many columns as fit the figure's width; of entries named alike the first."""
    named: dict[str, Line2D | Patch] = {}
    for entry in entries:
        named.setdefault(str(entry.get_label()), entry)
    columns = int(figure.get_figwidth() / (0.06 * max(map(len, named)) + 0.55))
    figure.legend(handles=list(named.values()), loc="outside lower center", ncols=max(1, min(columns, len(named))))


def entry(shown: Look, label: str, marker: bool = True) -> Line2D:
    """A variant's legend entry: its colour, and its marker or else its dashes."""
    symbol, dash = (shown.marker, "-") if marker else ("", shown.dash)
    return Line2D([], [], color=shown.colour, alpha=shown.alpha, marker=symbol, linestyle=dash, label=label)


def key(label: str, marker: str, dash: Any = "-", filled: bool = True, width: float = 1.2) -> Line2D:
    """A legend entry in ink, for what a marker or a dash means in every colour; width 0 shows the marker alone."""
    face, style = INK if filled else "white", dash if width else "none"
    return Line2D([], [], color=INK, marker=marker, linestyle=style, linewidth=width, markerfacecolor=face, label=label)


def fit(figure: Figure) -> str:
    """Set a figure for a paper: every text in 8 pt, labels in lines that fit, as high as these need.

    Returns the note above its panels, which is for the paper's caption, and takes it away.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontsize(8)
    for ax in figure.axes:
        ax.set_xlabel(fill(ax.get_xlabel(), letters(ax)))
        ax.set_ylabel(fill(ax.get_ylabel(), int(ROW / LETTER)))
        for text in ax.texts:
            if text.get_rotation() == 0:
                text.set_text(fill(text.get_text(), letters(ax)))
    note = figure.get_suptitle()
    figure.suptitle("")
    if figure.get_figwidth() <= COLUMN:
        figure.set_figheight(height_of(figure))
    return note


def height_of(figure: Figure) -> float:
    """Inches that a figure of panels needs: its rows, the lines of titles and labels, its legend."""
    grid = figure.axes[0].get_subplotspec()
    assert grid is not None
    above = max(ax.get_title().count("\n") + 1 for ax in figure.axes)
    below = max(ax.get_xlabel().count("\n") + 2 for ax in figure.axes)
    entries = sum(math.ceil(len(one.get_texts()) / one._ncols) for one in figure.legends)  # pyright: ignore
    return ROW * grid.get_gridspec().nrows + LINE * (above + below + entries) + 0.3


def save(figure: Figure, path: Path, kinds: tuple[str, ...] = ("png", "pdf"), note: str = "") -> list[Path]:
    """Write path.KIND for each kind, each whole or not at all; the paths written. A PDF's subject is `note`."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine(None)  # laid out once, for both; "none" would draw everything twice
    about = {"CreationDate": None} | ({"Subject": note} if note else {})
    written = []
    for kind in kinds:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=about if kind == "pdf" else {})
        part = path.with_name(f"{path.name}.{kind}.part")
        part.write_bytes(buffer.getvalue())
        written.append(part.replace(path.with_name(f"{path.name}.{kind}")))
    return written
