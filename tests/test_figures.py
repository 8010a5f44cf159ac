"""Figures: the right series in the right look, files written, missing data skipped with a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from saebench.checks import InputError
from saebench.figures import FIGURES, draw_figures
from saebench.figures.curves import latent_importance, training_curves
from saebench.figures.data import Group, facet_of, pages, read_groups
from saebench.figures.points import cells, table_of, trained_at
from saebench.figures.size import RULES, against_size, pruning_rules
from saebench.figures.sparsity import against_l0
from saebench.figures.style import LOOKS, look
from saebench.sae_configs import SAE_VARIANTS
from saebench.tables import write_tables
from tests.synthetic_runs import BUDGETS, SHARES, VARIANTS, write_levels, write_run
from tests.synthetic_runs import RULES as MEASURED


def lines_of(ax) -> list[tuple[str, np.ndarray]]:
    """The label and the points [n, 2] of every error-bar series."""
    drawn = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    return [(str(c.get_label()), np.column_stack(c.lines[0].get_data())) for c in drawn]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables, levels among them, of six variants, two sizes, two seeds, k 16."""
    folder = tmp_path_factory.mktemp("outputs")
    for variant in VARIANTS:
        for d_sae in (256, 1024):
            for seed in (0, 1):
                write_run(folder, variant, d_sae, 16, seed)
    write_tables(folder)
    write_levels(folder)
    return folder


@pytest.fixture(scope="module")
def group(outputs: Path) -> Group:
    """The one group of `outputs`."""
    (only,) = read_groups(outputs)
    return only


def test_against_size_draws_cuts_prefix_and_smaller_saes(group: Group) -> None:
    (figure,) = against_size(group, "fvu")
    panels = [lines_of(ax) for ax in figure.axes]
    curves = [[label for label, points in panel if len(points) == len(SHARES) + 1] for panel in panels]
    points = [[label for label, points in panel if len(points) == 1] for panel in panels]
    family = ["TopK", "BatchTopK", "Matryoshka", "Matryoshka", "HierarchicalTopK"]  # Matryoshka pruned and as a prefix
    assert curves == [[*family, "JumpReLU", "ReLU"], family, family]
    assert points == [sorted(set(curves[0]), key=curves[0].index), sorted(set(family), key=family.index), []]


def test_cuts_end_in_the_uncut_sae(group: Group) -> None:
    full = group.full("fvu")
    number = next(c.number for c in group.configs if (c.variant, c.d_sae) == ("batchtopk", 1024))
    own = full.loc[full["configuration"] == number].set_index("mode")["fvu"]
    ends = [dict(lines_of(ax)[:3])["BatchTopK"][-1] for ax in against_size(group, "fvu")[0].axes]
    expected = [own["threshold"], own["batch"], own["batch"]]  # in the mode of the cut
    assert [list(end) for end in ends] == [[1024, pytest.approx(value)] for value in expected]


def test_k_scaled_with_size_is_matched(tmp_path: Path) -> None:
    write_run(tmp_path, "topk", 1024, 32)
    write_run(tmp_path, "topk", 256, 8)
    write_tables(tmp_path)
    (group,) = read_groups(tmp_path)
    (figure,) = against_size(group, "fvu")
    rows = [[len(lines_of(ax)) for ax in figure.axes[i : i + 3]] for i in (0, 3)]
    assert rows == [[1, 1, 1], [1, 1, 2]]  # rows k = 8 and k = 32; 32 * 256 / 1024 = 8


@pytest.fixture(scope="module")
def rules(group: Group) -> Figure:
    """The one page of pruning_rules of `group`."""
    (figure,) = pruning_rules(group)
    return figure


def test_pruning_rules_draws_every_rule(rules: Figure) -> None:
    drawn = [[label for label, _ in lines_of(ax)] for ax in rules.axes]
    labels = [label for rule, (label, _, _) in RULES.items() if rule in MEASURED]
    assert len(labels) == len(MEASURED)
    assert drawn == [labels] * 12 + [labels, [], []] * 2  # relu and jumprelu know one order
    assert all(not ax.axison for ax in rules.axes if not lines_of(ax))


def test_pruning_rules_are_held_against_prefixes_and_smaller_saes(rules: Figure) -> None:
    drawn = [
        [(str(line.get_label()), len(np.asarray(line.get_xdata()))) for line in ax.get_lines() if line.get_gid()]
        for ax in rules.axes
    ]
    nested = ("Matryoshka (prefix)", len(SHARES) + 1)
    topk, matryoshka = drawn[:3], drawn[6:9]
    smaller = ("TopK, trained at size m", 1)
    assert topk == [[nested, smaller], [nested, smaller], [nested]]  # no TopK SAE of k 16 * 256 / 1024
    assert matryoshka == [[("Matryoshka, trained at size m", 1)]] * 2 + [[]]
    legend = [text.get_text() for text in rules.legends[0].get_texts()]
    assert legend[len(MEASURED) :][:2] == [nested[0], smaller[0]]


def test_a_rate_chosen_for_each_size_does_not_part_sizes(tmp_path: Path) -> None:
    write_run(tmp_path, "topk", 1024, train__lr=0.001)
    write_run(tmp_path, "topk", 256, train__lr=0.002)
    write_tables(tmp_path)
    (group,) = read_groups(tmp_path)
    (figure,) = against_size(group, "fvu")
    assert [len(points) for _, points in lines_of(figure.axes[0])] == [len(SHARES) + 1, 1]


def test_tables_of_an_older_saebench_name_the_command(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    path = tmp_path / "tables" / "views.csv"
    path.write_text(path.read_text().replace("rsa_pearson", "former"))
    with pytest.raises(InputError, match=r"without rsa_pearson; run `saebench tables` again"):
        draw_figures(tmp_path)


@pytest.mark.parametrize("metric", ["rsa_pearson", "rsa_spearman", "fvu_std"])
def test_further_metrics_are_drawn_against_size_and_l0(group: Group, metric: str) -> None:
    (size,), sparse = against_size(group, metric), against_l0(group, metric)
    assert [len(lines_of(ax)) for ax in size.axes] == [13, 9, 5]  # 7 and 5 curves, the smaller SAEs of 6 and 4 variants
    assert all(lines_of(ax) for figure in sparse for ax in figure.axes)
    scales = {ax.get_yscale() for figure in (size, *sparse) for ax in figure.axes}
    assert scales == ({"log"} if metric == "fvu_std" else {"linear"})


def test_against_l0_draws_points_and_budgets(tmp_path: Path) -> None:
    for k in (16, 32):
        write_run(tmp_path, "topk", 256, k)
    write_tables(tmp_path)
    (group,) = read_groups(tmp_path)
    (figure,) = against_l0(group, "fvu")
    for ax in figure.axes:
        (_, trained), (_, cut) = lines_of(ax)
        assert len(trained) == 2
        assert len(cut) == sum(b < 32 for b in BUDGETS)  # of the densest SAE
        assert np.all(np.diff(trained[:, 0]) > 0)


def test_curves_have_a_line_per_configuration(group: Group) -> None:
    (importance,), (training,) = latent_importance(group), training_curves(group)
    assert [len(ax.get_lines()) for ax in importance.axes] == [6] * 4
    assert [len(ax.get_lines()) for ax in training.axes] == [6] * 6
    dead = training.axes[2].get_lines()[0].get_ydata()
    assert 0 < np.nanmax(np.asarray(dead)) < 0.1  # a share, not a count


def test_seeds_logged_at_other_steps_are_interpolated(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    other = write_run(tmp_path, seed=1) / "train.csv"
    header, *rows = other.read_text().splitlines()
    other.write_text("\n".join([header, *rows[::7]]) + "\n")
    write_tables(tmp_path)
    (group,) = read_groups(tmp_path)
    (figure,) = training_curves(group)
    drawn = np.asarray(figure.axes[1].get_lines()[0].get_ydata(), dtype=float)
    np.testing.assert_allclose(drawn, 16.0)


def test_zeros_are_left_out_of_log_axes(group: Group) -> None:
    (figure,) = latent_importance(group)
    values = np.concatenate([np.asarray(line.get_ydata()) for ax in figure.axes for line in ax.get_lines()])
    assert np.nanmin(values) > 0
    assert np.isnan(values).any()


def test_a_variant_has_one_colour_everywhere(group: Group) -> None:
    drawn = [*against_size(group, "fvu"), *against_l0(group, "cka_std"), *latent_importance(group)]
    for figure in drawn:
        for legend in figure.legends:
            entries = dict(zip([t.get_text() for t in legend.get_texts()], legend.legend_handles, strict=True))
            for variant in VARIANTS:
                handle = entries[look(variant).name]
                assert handle is not None
                assert to_hex(handle.get_color()) == look(variant).colour.lower()  # pyright: ignore
        for ax in figure.axes:
            named = {look(variant).name: look(variant).colour.lower() for variant in VARIANTS}
            for container in ax.containers:
                assert to_hex(container.lines[0].get_color()) == named[str(container.get_label())]  # pyright: ignore


def test_looks_are_distinct_and_known_variants_have_one() -> None:
    assert set(SAE_VARIANTS) <= set(LOOKS)
    assert len({shown.colour for shown in LOOKS.values()}) == len(LOOKS)
    assert len({shown.marker for shown in LOOKS.values()}) == len(LOOKS)
    assert look("my-variant") == look("my-variant")
    assert look("my-variant").name == "my-variant"
    assert look("my-variant").colour not in {shown.colour for shown in LOOKS.values()}


def test_configurations_of_a_variant_are_told_apart(tmp_path: Path) -> None:
    for lr in (None, 0.01):
        write_run(tmp_path, "topk", train__lr=lr)
    write_run(tmp_path, "batchtopk")
    write_tables(tmp_path)
    (group,) = read_groups(tmp_path)
    told = {config.name: config.shown.alpha for config in group.configs}
    assert set(told) == {"TopK, lr 0.01", "TopK, lr null", "BatchTopK"}
    assert told["TopK, lr 0.01"] != told["TopK, lr null"]
    assert "python-docs, held-out tokens of typical norm\none seed" in group.note()


def test_facet_is_k_or_near_the_l0() -> None:
    row = {"k": None, "target_l0": None}
    assert facet_of(row | {"k": 24}, 50.0, {32}) == 24
    assert facet_of(row, 30.0, {8, 32}) == 32
    assert facet_of(row | {"target_l0": 8.0}, 30.0, {8, 32}) == 8
    assert facet_of(row, 300.0, {8, 32}) == 256
    assert facet_of(row, 0.0, set()) == 1


def test_pages_are_even() -> None:
    assert pages(list(range(7)), 6) == [[0, 1, 2, 3], [4, 5, 6]]
    assert pages([], 6) == []


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_its_axes_and_draws_in_every_panel(group: Group, name: str) -> None:
    for figure in FIGURES[name](group):
        assert all(ax.has_data() for ax in figure.axes if ax.axison)
        assert all(ax.get_ylabel() for ax in figure.axes if ax.get_subplotspec().is_first_col())  # pyright: ignore
        assert figure.axes[-1].get_xlabel() or not figure.axes[-1].axison
        assert len(figure.legends) == 1


def test_files_of_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "relu")
    write_run(tmp_path, "jumprelu")
    write_tables(tmp_path)
    monkeypatch.setattr("saebench.figures.FIGURES", {"pruning_rules": pruning_rules})
    monkeypatch.setattr("saebench.figures.size.ROWS", {"size": 1, "rules": 1})
    written = draw_figures(tmp_path)
    stems = ("pruning_rules", "pruning_rules-2")
    assert [path.name for path in written] == [f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")]
    assert [path.read_bytes()[:4] for path in written] == [b"\x89PNG", b"%PDF"] * 2
    assert sorted(tmp_path.glob("figures/*")) == sorted(written)  # nothing half written


def test_missing_measurements_are_skipped_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in (2, 3):
        run = write_run(tmp_path, model__layer=layer)
        lines = (run / "metrics.csv").read_text().splitlines()
        (run / "metrics.csv").write_text(
            "\n".join(line for line in lines if "budget" in line or ",full," in line) + "\n"
        )
    write_tables(tmp_path)
    kept = {name: FIGURES[name] for name in ("fvu_vs_size", "pruning_rules", "fvu_vs_l0")}
    monkeypatch.setattr("saebench.figures.FIGURES", kept)
    names = {path.stem for path in draw_figures(tmp_path)}
    assert names == {f"fvu_vs_l0-tiny-gpt2-layer{layer}-resid_post-python-docs" for layer in (2, 3)}
    said = capsys.readouterr().err
    assert "fvu_vs_size-tiny-gpt2-layer2-resid_post-python-docs: nothing measured for it; not drawn" in said


def test_missing_tables_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"saebench tables"):
        draw_figures(tmp_path)


def test_a_grid_of_points_is_drawn_against_those_trained_there(tmp_path: Path) -> None:
    write_run(tmp_path, "lattice", 256, 32)
    for m in (16, 32, 64, 128, 256):
        for k in (4, 8, 16, 32):
            write_run(tmp_path, "topk", m, min(k, m), seed=k)
    write_tables(tmp_path)
    (group,) = read_groups(tmp_path)
    (figure,) = FIGURES["points_fvu"](group)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["16", "32", "64", "128", "256"]
    numbers = [text.get_text() for text in right.texts if text.get_text()]
    best = trained_at(group, "fvu")
    (config,) = [one for one in group.configs if one.variant == "lattice"]
    mine = table_of(group.views, config, "fvu")
    assert f"{100 * (mine.loc[8, 64] / best.loc[8, 64] - 1):+.0f}" in numbers
    assert len(numbers) >= 12
    shade = np.array([[0.2, -0.2]])
    for worse, redder in ((1, 0), (-1, 1)):  # of a similarity the greater is the better
        ax = Figure().subplots()
        cells(ax, pd.DataFrame([[0.5, 0.5]]), shade, "{:+.0f}", 100, worse)
        image = np.asarray(ax.get_images()[0].get_array())
        assert image[0, redder, 0] > image[0, 1 - redder, 0]
    higher = trained_at(group, "cka_std")
    assert higher.loc[8, 64] == max(group.full("cka_std").query("m == 64 and budget == 8")["cka_std"])
    alone = Group(**{**vars(group), "configs": [one for one in group.configs if one.variant == "topk"]})
    assert FIGURES["points_fvu"](alone) == []


def test_latents_per_token_are_steps_or_a_line(group: Group) -> None:
    (page,) = FIGURES["l0_histogram"](group)
    ax = page.axes[0]
    steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    lines = [line for line in ax.get_lines() if line.get_linestyle() != ":"]
    assert (len(steps), len(lines)) == (4, 2)  # TopK and HierarchicalTopK have k latents on every token
    for patch in steps:
        assert 90 < np.sum(patch.get_data()[0]) <= 100.0001  # per cent of the tokens, but for those beyond the axis
