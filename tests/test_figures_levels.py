"""Figures of levels and of training cost: a line per variant, every group of latents, nothing where nothing was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from saebench.figures.cost import training_cost
from saebench.figures.data import Group, read_groups
from saebench.figures.levels import level_statistics
from saebench.tables import write_tables
from tests.synthetic_runs import write_levels, write_run

GROUPS = ["0–63", "64–127", "128–255", "256–511", "512–1023", "all"]


def series_of(ax) -> list[tuple[str, np.ndarray]]:
    """The label and the points [n, 2] of every error-bar series."""
    drawn = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    return [(str(c.get_label()), np.column_stack(c.lines[0].get_data())) for c in drawn]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables and levels of three variants of size 1024 at two k, a smaller TopK, two seeds each."""
    folder = tmp_path_factory.mktemp("outputs")
    for seed in (0, 1):
        for k in (16, 32):
            for variant in ("topk", "matryoshka", "relu"):
                write_run(folder, variant, 1024, k, seed)
        write_run(folder, "topk", 256, 16, seed)
    write_tables(folder)
    write_levels(folder)
    return folder


@pytest.fixture(scope="module")
def group(outputs: Path) -> Group:
    """The one group of `outputs`."""
    (only,) = read_groups(outputs)
    return only


def test_levels_are_drawn_beside_the_same_groups_of_saes_without_nesting(group: Group) -> None:
    small, large = level_statistics(group)
    assert [len(figure.axes) for figure in (small, large)] == [4, 8]
    for ax in large.axes:
        assert [label for label, _ in series_of(ax)] == ["TopK", "TopK", "Matryoshka", "Matryoshka"]  # groups, then all
        assert [len(points) for _, points in series_of(ax)] == [5, 1, 5, 1]
    for ax in large.axes[4:]:
        assert [label.get_text() for label in ax.get_xticklabels()] == GROUPS
    frequency = {label: points[:, 1] for label, points in series_of(large.axes[0])[::2]}
    np.testing.assert_allclose(frequency["TopK"], 0.01)
    assert np.all(np.diff(frequency["Matryoshka"]) < 0)
    assert [text.get_text() for text in small.legends[0].get_texts()] == ["TopK"]


def test_levels_are_means_over_seeds_with_their_spread(group: Group) -> None:
    figure = level_statistics(group)[0]
    ax = figure.axes[3]  # largest cosine: 0.30 at seed 0, 0.31 at seed 1
    drawn = next(c for c in ax.containers if isinstance(c, ErrorbarContainer))
    np.testing.assert_allclose(np.asarray(drawn.lines[0].get_ydata()), 0.305)
    low, high = drawn.lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * np.std([0.30, 0.31], ddof=1))


def test_no_levels_no_figure(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    (without,) = read_groups(tmp_path)
    assert level_statistics(without) == []
    write_levels(tmp_path)
    path = tmp_path / "tables" / "levels.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row for row in rows if ",all," in row)]))
    (whole,) = read_groups(tmp_path)
    assert level_statistics(whole) == []


def test_cost_has_a_line_per_variant_and_a_panel_per_k(outputs: Path, group: Group) -> None:
    (figure,) = training_cost(group)
    assert [ax.get_title() for ax in figure.axes] == ["k or L0 = 16", "k or L0 = 32"]
    drawn = [dict(series_of(ax)) for ax in figure.axes]
    assert [sorted(panel) for panel in drawn] == [["Matryoshka", "ReLU", "TopK"]] * 2
    assert drawn[0]["TopK"][:, 0].tolist() == [256, 1024]
    runs = [outputs / "runs" / f"topk-256-16-{seed}" / "train.csv" for seed in (0, 1)]
    ends = [dict(zip(*(path.read_text().splitlines()[i].split(",") for i in (0, -1)), strict=True)) for path in runs]
    expected = np.mean([1e6 * float(end["seconds"]) / float(end["tokens"]) for end in ends])
    assert drawn[0]["TopK"][0, 1] == pytest.approx(expected)


def test_cost_of_many_k_fills_rows_and_blanks_the_rest(tmp_path: Path) -> None:
    for k in (2, 4, 8, 16, 32):
        write_run(tmp_path, "topk", 256, k)
    write_tables(tmp_path)
    (group,) = read_groups(tmp_path)
    (figure,) = training_cost(group)
    assert [bool(ax.axison) for ax in figure.axes] == [True] * 5 + [False]
    assert all(len(series_of(ax)) == ax.axison for ax in figure.axes)


def test_runs_that_did_not_measure_seconds_have_no_cost(tmp_path: Path) -> None:
    train = write_run(tmp_path) / "train.csv"
    header, *rows = train.read_text().splitlines()
    unmeasured = [row.rpartition(",")[0] for row in rows]
    former = header.removesuffix(",seconds")
    for lines in ([header, *(f"{row}," for row in unmeasured)], [former, *unmeasured]):
        train.write_text("\n".join(lines) + "\n")
        write_tables(tmp_path)
        (group,) = read_groups(tmp_path)
        assert training_cost(group) == []
