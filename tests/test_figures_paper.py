"""Figures for a paper: as wide as a column, in 8 pt, as PDF; the same series in the same colours as on the screen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from saebench.checks import InputError
from saebench.cli.main import main
from saebench.figures import FIGURES, draw_figures
from saebench.figures.data import Group, read_groups
from saebench.figures.style import COLUMN, STYLES, fit
from saebench.tables import write_tables
from tests.synthetic_runs import write_run


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of three variants in two sizes."""
    folder = tmp_path_factory.mktemp("outputs")
    for variant in ("topk", "matryoshka", "relu"):
        for d_sae in (256, 1024):
            write_run(folder, variant, d_sae, 16)
    write_tables(folder)
    return folder


def drawn(group: Group, name: str, style: str) -> list[Figure]:
    with rc_context(STYLES[style]):
        return FIGURES[name](group)


def series(figure: Figure) -> list[tuple[str, Any]]:
    """Colour and points of every line of every panel."""
    return [(to_hex(line.get_color()), np.asarray(line.get_xydata())) for ax in figure.axes for line in ax.get_lines()]


@pytest.mark.parametrize("name", ["fvu_vs_size", "fvu_vs_l0", "pruning_rules", "training_curves", "training_cost"])
def test_a_paper_shows_the_same_series_in_a_column(outputs: Path, name: str) -> None:
    (group,) = read_groups(outputs)
    for screen, paper in zip(drawn(group, name, "screen"), drawn(group, name, "paper"), strict=True):
        assert paper.get_figwidth() <= COLUMN < screen.get_figwidth() + 0.3
        for (colour, points), (same_colour, same_points) in zip(series(screen), series(paper), strict=True):
            assert colour == same_colour
            np.testing.assert_array_equal(points, same_points)
        fit(paper)
        paper.canvas.draw()
        texts = [t for t in paper.findobj(Text) if isinstance(t, Text) and t.get_text().strip() and t.get_visible()]
        assert {t.get_fontsize() for t in texts} == {8}
        assert not any(t.get_usetex() for t in texts)


def test_the_command_writes_vectors_beside_the_others(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {name: FIGURES[name] for name in ("fvu_vs_l0", "training_cost")}
    monkeypatch.setattr("saebench.figures.FIGURES", chosen)
    for words in ([str(outputs), "figures.style=paper"], ["figures.stile=paper"], [str(outputs), "figures.style=papr"]):
        monkeypatch.setattr(sys, "argv", ["saebench", "figures", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == (0 if words[-1] == "figures.style=paper" else 2)
    said = capsys.readouterr()
    assert f"2 figures in {outputs / 'figures' / 'paper'}" in said.out
    assert "did you mean paper" in said.err
    assert sorted(p.name for p in (outputs / "figures" / "paper").iterdir()) == ["fvu_vs_l0.pdf", "training_cost.pdf"]
    assert list((outputs / "figures").glob("*.p*")) == []
    with pytest.raises(InputError, match="screen, paper"):
        draw_figures(outputs, "poster")
