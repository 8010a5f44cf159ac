"""Forest plots: every comparison, seed and interval where it should be, on pages that stay readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from saebench.checks import InputError
from saebench.figures import draw_figures
from saebench.figures.claims import INK, MARKS, ROWS, Claim, forest, packed, read_claims
from saebench.tables import write_tables
from tests.synthetic_runs import write_run

CONDITIONS = ("fvu, L0 paper, all", "fvu, L0 paper, typical")
SEEDS = (-0.02, 0.0, 0.02)  # what each seed's effect is off the mean
VERDICTS = list(MARKS)


def finding(
    claim: str, condition: str, comparison: str, verdict: str, effect: float | None, **others: Any
) -> dict[str, Any]:
    """A row of claims.csv with an interval of 0.05 to both sides."""
    ends = {} if effect is None else {"low": effect - 0.05, "high": effect + 0.05}
    named = {"experiment": "tiny", "id": claim, "condition": condition, "comparison": comparison, "verdict": verdict}
    return (
        named
        | {"effect": effect, "low": None, "high": None, "unit": "relative", "source": "", "text": ""}
        | ends
        | others
    )


def write_claim(
    outputs: Path, claim: str = "T1", comparisons: int = 3, conditions: tuple[str, ...] = CONDITIONS, **others: Any
) -> None:
    """Add a claim to claims.csv and pairs.csv: verdicts in turn, effects -0.1, -0.2, ...; one comparison has no name."""
    names = [f"k {2**i}" if comparisons > 1 else "" for i in range(comparisons)]
    rows = [finding(claim, "verdict", "", "refuted", -0.1, text=f"What {claim} says", source="a paper", **others)]
    pairs = []
    for condition in conditions:
        rows += [finding(claim, condition, "", "inconclusive", -0.1, **others)] if comparisons > 1 else []
        for i, name in enumerate(names):
            effect = -0.1 * (i + 1)
            rows.append(finding(claim, condition, name, VERDICTS[i % 3], effect, **others))
            pairs += [rows[-1] | {"seed": seed, "effect": effect + off} for seed, off in enumerate(SEEDS)]
    columns = ["experiment", "id", "condition", "comparison", "seed", "effect", "low", "high"]
    append(outputs / "claims.csv", pd.DataFrame(rows))
    append(outputs / "tables" / "pairs.csv", pd.DataFrame(pairs, columns=pd.Index(columns)))


def append(path: Path, table: pd.DataFrame) -> None:
    """Add rows to a CSV file."""
    path.parent.mkdir(exist_ok=True)
    former = [pd.read_csv(path)] if path.is_file() else []
    pd.concat([*former, table]).to_csv(path, index=False)


def only(outputs: Path) -> Claim:
    """The one claim of `outputs`."""
    (claim,) = read_claims(outputs)
    return claim


def marks(ax, label: str) -> list[tuple[float, float]]:
    """Where the lines of a label are."""
    lines = [line for line in ax.get_lines() if line.get_label() == label]
    return [(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_a_row_per_comparison_a_panel_per_condition(tmp_path: Path) -> None:
    write_claim(tmp_path)
    (figure,) = forest(only(tmp_path))
    assert [ax.get_title() for ax in figure.axes] == [f"{condition}\ninconclusive" for condition in CONDITIONS]
    for ax in figure.axes:
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["k 1", "k 2", "k 4"]
        for place, verdict in enumerate(VERDICTS):
            assert marks(ax, verdict) == [(pytest.approx(-10 * (place + 1)), place)]  # in %
        seeds = np.array(marks(ax, "seeds")).reshape(3, len(SEEDS), 2)
        np.testing.assert_allclose(seeds[:, :, 0], np.add.outer([-10, -20, -30], [-2, 0, 2]))
        bars = [segment for c in ax.collections if isinstance(c, LineCollection) for segment in c.get_segments()]
        np.testing.assert_allclose([bar[:, 0] for bar in bars], [[-15, -5], [-25, -15], [-35, -25]])
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top
        assert "(%)" in ax.get_xlabel()
    said = figure._suptitle.get_text()  # pyright: ignore
    assert said.startswith("T1: What T1 says\nVerdict: refuted. Source: a paper.")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*VERDICTS, "each seed"]


def test_verdicts_differ_in_shape_and_colour() -> None:
    assert len({mark.marker for mark in MARKS.values()}) == len({mark.colour for mark in MARKS.values()}) == 3
    assert INK not in {mark.colour for mark in MARKS.values()}


def test_a_claim_in_its_own_unit_and_a_comparison_without_name(tmp_path: Path) -> None:
    write_claim(tmp_path, comparisons=1, unit="absolute")
    (figure,) = forest(only(tmp_path))
    ax = figure.axes[0]
    assert marks(ax, "reproduced") == [(pytest.approx(-0.1), 0)]
    assert ax.get_title() == f"{CONDITIONS[0]}\nreproduced"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["all pairs"]
    assert ax.get_xlabel() == "left − right"


def test_a_margin_is_shaded_where_the_file_has_it(tmp_path: Path) -> None:
    write_claim(tmp_path, margin_low=-0.02, margin_high=0.03)
    (figure,) = forest(only(tmp_path))
    for ax in figure.axes:
        (band,) = ax.patches
        assert band.get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx([-2, 3])
    assert figure.legends[0].get_texts()[-1].get_text() == "within the margin"


def test_wide_intervals_do_not_set_the_axis(tmp_path: Path) -> None:
    write_claim(tmp_path, low=-9.0, high=9.0)
    least, most = only(tmp_path).limits()
    assert -80 < least < -60  # effects from -32 to 0
    assert 30 < most < 40


def test_open_comparisons_have_no_bar_and_the_note_says_so(tmp_path: Path) -> None:
    write_claim(tmp_path, low=None, high=None)
    (figure,) = forest(only(tmp_path))
    bars = [
        segment for c in figure.axes[0].collections if isinstance(c, LineCollection) for segment in c.get_segments()
    ]
    assert not any(len(bar) and np.isfinite(bar).all() for bar in bars)
    assert "none: too few seeds or documents" in figure._suptitle.get_text()  # pyright: ignore


def test_conditions_without_pairs_are_named(tmp_path: Path) -> None:
    write_claim(tmp_path)
    append(tmp_path / "claims.csv", pd.DataFrame([finding("T1", "fvu, L0 exact, all", "", "inconclusive", None)]))
    (figure,) = forest(only(tmp_path))
    assert len(figure.axes) == 2
    assert "Nothing to compare under: fvu, L0 exact, all." in figure._suptitle.get_text()  # pyright: ignore


def test_many_comparisons_go_on_on_another_page(tmp_path: Path) -> None:
    write_claim(tmp_path, comparisons=ROWS + 2)
    pages = forest(only(tmp_path))
    assert [len(page.axes[0].get_yticks()) for page in pages] == [ROWS // 2 + 1] * 2


def test_many_conditions_go_on_below(tmp_path: Path) -> None:
    write_claim(tmp_path, conditions=tuple(f"fvu, L0 {i}" for i in range(6)))
    (figure,) = forest(only(tmp_path))
    assert [bool(ax.axison) for ax in figure.axes] == [True] * 6 + [False] * 2
    assert packed([(["a"], ["x"] * 30), (["b"], ["x"] * 10), (["c"], ["x"])]) == [
        [(["a"], ["x"] * 30), (["b"], ["x"] * 10)],
        [(["c"], ["x"])],
    ]


def test_claims_are_optional_and_those_without_pairs_are_skipped(tmp_path: Path) -> None:
    assert read_claims(tmp_path) == []
    write_claim(tmp_path)
    append(tmp_path / "claims.csv", pd.DataFrame([finding("R1", "verdict", "", "reproduced", 1.0)]))
    assert [claim.name for claim in read_claims(tmp_path)] == ["claim_T1"]
    (tmp_path / "tables" / "pairs.csv").write_text("\n")  # what `saebench claims` writes where no claim has pairs
    assert read_claims(tmp_path) == []


def test_claims_of_several_experiments_have_files_of_their_own(tmp_path: Path) -> None:
    write_claim(tmp_path)
    for name in ("claims.csv", "tables/pairs.csv"):
        table = pd.read_csv(tmp_path / name)
        append(tmp_path / name, table.assign(experiment="progressive/cpu"))
    assert [claim.name for claim in read_claims(tmp_path)] == ["claim_T1-tiny", "claim_T1-progressive_cpu"]


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_claim(tmp_path)
    path = tmp_path / "claims.csv"
    path.write_text(path.read_text().replace("k 4", "k 5"))
    with pytest.raises(InputError, match=r"differ; run `saebench claims` again"):
        read_claims(tmp_path)


def test_claims_are_drawn_behind_the_other_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    write_tables(tmp_path)
    write_claim(tmp_path)
    monkeypatch.setattr("saebench.figures.FIGURES", {})
    assert [path.name for path in draw_figures(tmp_path)] == ["claim_T1.png", "claim_T1.pdf"]
