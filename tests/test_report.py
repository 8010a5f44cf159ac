"""The report: one page that says what the tables say, whatever the strings in them; and, in a browser, what a reader does."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saebench import report
from saebench.checks import InputError
from saebench.compose import load
from saebench.config import as_dict, recorded
from saebench.report.html import json_html, page_of, script_html
from saebench.report.pictures import read_pictures
from saebench.report.runs import command_of, sections_of
from saebench.report.studies import POINTS, by_run, read_studies
from saebench.tables import read_table, write_tables
from tests.browser import Browser, find
from tests.configs import run_config
from tests.synthetic_runs import VARIANTS, write_run

EVIL = '</script><script>alert(1)</script><b title="x">&amp; \u2028 {{data}}'
CLAIM = {
    "experiment": "paper/cpu", "id": "A1", "condition": "verdict", "comparison": "", "verdict": "refuted", "effect": 0.12,
    "low": 0.1, "high": 0.14, "unit": "relative", "p": 0.01, "pairs": 4, "seeds": 2, "documents": 16, "reason": EVIL,
    "runs": "topk-256-16-0 batchtopk-256-16-0", "source": "a test", "text": EVIL, "margin_low": -0.02, "margin_high": 0.02,
}  # fmt: skip


def write_claims(outputs: Path) -> None:
    """A claim with a verdict and two findings, and the pairs behind one of them."""
    found = [
        {"condition": f"d_sae {d}", "comparison": "topk, batchtopk", "verdict": v}
        for d, v in ((256, "refuted"), (512, "inconclusive"))
    ]
    rows = [CLAIM, *(CLAIM | one for one in found)]
    pairs = [
        {"experiment": "paper/cpu", "id": "A1"} | found[0] | {"effect": e, "low": e, "high": e} for e in (0.11, 0.13)
    ]
    for path, table in ((outputs / "claims.csv", rows), (outputs / "tables" / "pairs.csv", pairs)):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of six variants, two sizes, two seeds; strings that would be markup; a claim; a picture."""
    folder = tmp_path_factory.mktemp("outputs")
    for variant in VARIANTS:
        for d_sae in (256, 1024):
            for seed in (0, 1):
                write_run(folder, variant, d_sae, 16, seed)
    write_run(folder, "gated", 256, 16, 0, model__name="<i>evil</i>")
    write_tables(folder)
    write_claims(folder)
    (folder / "figures").mkdir()
    for name in ("levels.png", "fvu_vs_l0.png"):
        (folder / "figures" / name).write_bytes(b"\x89PNG")
    return folder


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text within script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.scripts += [""] if tag == "script" else []

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.scripts:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def page(outputs: Path) -> str:
    """The page, with a line in place of Plotly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "library", lambda: "var Plotly = '</script>';")
        path = report.write_report(outputs)
    assert path == outputs / "report" / "index.html"
    return path.read_text(encoding="utf-8")


def test_a_page_is_one_file_and_no_string_in_it_is_markup(page: str) -> None:
    made = Elements(page)
    assert [tag for tag, _ in made.tags].count("script") == 3
    assert not {tag for tag, _ in made.tags} & {"i", "iframe", "link", "object"}
    assert all(not a.get("src") and "title" not in a for _, a in made.tags)
    assert all((a.get("href") or "#").startswith("#") for _, a in made.tags)
    value = json.loads(made.scripts[0])
    assert value["claims"][0]["text"] == EVIL
    assert [study["title"].split(",")[0] for study in value["studies"]] == ["<i>evil</i>", "tiny-gpt2"]
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "default-src 'none'" in page


def test_verdicts_stand_in_the_page_without_its_script(page: str) -> None:
    text = re.sub(r"<[^>]+>", " ", page[page.index('<table class="claims"') : page.index("</table>")])
    assert "refuted" in text
    assert "+12 %" in text
    assert "[+10, +14]" in text
    assert "4 pairs, 2 seeds" in text


def test_figures_draw_what_the_tables_hold(outputs: Path, page: str) -> None:
    (study,) = [s for s in read_studies(outputs) if s["title"].startswith("tiny")]
    config = next(c for c in study["configs"] if (c["variant"], c["d_sae"]) == ("topk", 1024))
    assert [run for run, *_ in config["runs"]] == ["topk-1024-16-0", "topk-1024-16-1"]
    summary = read_table(outputs, "summary")
    wanted = summary.loc[
        (summary["configuration"] == config["number"]) & (summary["tokens"] == "typical"), "fvu"
    ].item()
    rows = pd.DataFrame(study["views"])
    mine = rows.loc[(rows["configuration"] == config["number"]) & (rows["view"] == "full")]
    assert mine["fvu"].item() == pytest.approx(wanted, rel=1e-4)
    views = read_table(outputs, "views")
    cuts = (views["tokens"] == "typical") & (views["view"] != "full") & (views["model"] == "tiny-gpt2")
    assert list(rows["view"] != "full").count(True) == list(cuts).count(True)
    assert {curve["run"] for curve in study["curves"]} == {run for c in study["configs"] for run, *_ in c["runs"]}


def test_without_views_and_curves_the_full_views_are_still_drawn(outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    for name in ("summary.csv", "runs.csv"):
        (tmp_path / "tables" / name).write_text((outputs / "tables" / name).read_text())
    for study, whole in zip(read_studies(tmp_path), read_studies(outputs), strict=True):
        assert set(study["views"]["view"]) == {"full"}
        assert (study["curves"], study["latents"], study["costs"]) == ([], [], [])
        assert [c["name"] for c in study["configs"]] == [c["name"] for c in whole["configs"]]
    with pytest.raises(InputError, match="saebench tables"):
        report.write_report(tmp_path / "tables")


def test_sections_hold_every_run_once_or_more(outputs: Path) -> None:
    records: dict[str, dict[str, Any]] = {"a": {"experiment": "x"}, "b": {"experiment": ""}, "c": {}}
    found = sections_of([{"experiment": "y", "runs": ["c", "a"]}], records)
    assert [(s["name"], s["runs"]) for s in found] == [("y", ["a", "c"]), ("x", ["a"]), ("Other runs", ["b"])]
    assert found[0]["commands"] == ["saebench sweep experiment=y", "saebench claims experiment=y"]
    assert [s["name"] for s in sections_of([], {"b": {}})] == ["All runs"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["sae=matryoshka", "sae.k=7", "data=text", r"data.path='/a b/it\'s=1,2.txt'", "train.lr=0.002"],
        ["sae=hierarchical", "sae.k=64", "sae.budgets='4,16,64'", "model=local", "model.path=/m", "model.layer=3"],
        ["sae=relu", "sae.target_l0=12.5", "sparsity=warmup", "evaluate.rules=[energy,random]", "seed=5"],
    ],
)
def test_a_command_makes_the_config_again(overrides: list[str]) -> None:
    cfg = run_config(*overrides)
    again = load(shlex.split(command_of(recorded(cfg)))[2:])
    assert as_dict(again) == as_dict(cfg)


def test_options_of_other_folders_have_no_command() -> None:
    config = recorded(run_config())
    assert command_of(config | {"model": config["model"] | {"name": "mine"}}) == ""


def test_curves_are_thinned_to_a_number_of_points() -> None:
    runs = [f"r{i}" for i in range(600)]
    table = pd.DataFrame([{"run": run, "tokens": t, "fvu": 0.5} for run in runs for t in range(50)])
    members = pd.DataFrame({"run": runs, "configuration": 1})
    curves = by_run(table, members, ["tokens", "fvu"])
    assert sum(len(curve["tokens"]) for curve in curves) == POINTS
    assert all((curve["tokens"][0], curve["tokens"][-1]) == (0, 49) for curve in curves)


def test_pictures_that_the_page_draws_itself_are_left_out(outputs: Path) -> None:
    assert [p["name"] for p in read_pictures(outputs)["shown"]] == ["levels"]


def test_a_script_cannot_end_its_element() -> None:
    assert json.loads(json_html({"a": EVIL})) == {"a": EVIL}
    assert "<" not in json_html({"a": EVIL})
    assert "</script" not in script_html("x = '</SCRIPT><!-- <script'").lower()
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_html(float("nan"))
    value = {
        "studies": [],
        "sections": [],
        "claims": [],
        "runs": {},
        "extras": [],
        "pictures": {"shown": [], "left_out": []},
    }
    assert "No claims were judged" in page_of("{{library}}", value, "")


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"saebench\[report\]"):
        report.library()


# in a browser


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    """A browser that must have reported no error and asked nobody for anything in the end."""
    if find() is None:
        pytest.skip("no Chromium is installed: on Debian, apt-get install chromium")
    with Browser(tmp_path / "profile") as browser:
        yield browser
        assert browser.errors == []
        assert {url.partition(":")[0] for url in browser.requested} <= {"file", "data", "blob"}


@pytest.fixture(scope="module")
def site(outputs: Path) -> Path:
    """The page with Plotly in it."""
    pytest.importorskip("plotly")
    return report.write_report(outputs)


DRAWN = "document.querySelectorAll('.plot .main-svg').length"
CELLS = "Array.from(document.querySelectorAll('#section-0 .scroll tbody tr'), (row) => row.cells[{}].textContent)"


@pytest.mark.long
def test_a_reader_sorts_filters_toggles_and_opens_runs(site: Path, chromium: Browser) -> None:
    chromium.go(site.as_uri())
    chromium.wait(f"{DRAWN} > 0")
    assert chromium.run("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000
    chromium.run("location.hash = '#claim-0'")
    chromium.wait("document.querySelector('#claim-0').open && document.querySelector('#claim-0 .main-svg') !== null")
    assert chromium.run("document.querySelector('#claim-0').textContent").count(EVIL) >= 2
    chart = "charts.filter((c) => c.spec.title === 'Against L0' && c.node.closest('#section-1')).at(-1)"
    chromium.run(f"{chart}.node.scrollIntoView()")
    chromium.wait(f"{chart}.drawn")
    before = chromium.run(f"{chart}.traces.length")
    chromium.run(f"{chart}.toggles.querySelector('input').click()")
    assert chromium.run(f"{chart}.traces.length") < before
    assert chromium.run(f"{chart}.plot._fullLayout.xaxis.type") == "log"
    chromium.run(f"{chart}.tools.querySelector('button').click()")
    assert chromium.run(f"{chart}.plot._fullLayout.xaxis.type") == "linear"
    assert "topk" in chromium.run(f"{chart}.traces.flatMap((t) => t.custom.flat()).join(' ')")
    table = "document.querySelector('#section-1 .scroll[aria-label^=\"Configurations of tiny\"]')"
    fvus = f"Array.from({table}.querySelectorAll('tbody tr'), (r) => parseFloat(r.cells[6].textContent))"
    head = f"{table}.querySelectorAll('thead button')[6]"
    chromium.run(f"{head}.click()")
    assert chromium.run(fvus) == sorted(chromium.run(fvus))
    assert chromium.run(f"{table}.querySelectorAll('th')[6].getAttribute('aria-sort')") == "ascending"
    chromium.run(f"{head}.click()")
    assert chromium.run(fvus) == sorted(chromium.run(fvus), reverse=True)
    search = f"{table}.parentNode.querySelector('input')"
    chromium.run(f"{search}.value = 'matryoshka 1024'; {search}.dispatchEvent(new Event('input'))")
    assert 0 < len(chromium.run(fvus)) < 4
    chromium.run("openRun('topk-1024-16-0')")
    assert "saebench train" in chromium.run("document.querySelector('dialog[open] pre').textContent")
    chromium.press("Escape")
    chromium.wait("document.querySelector('dialog[open]') === null")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_draws_and_fits_a_telephone(site: Path, chromium: Browser, scheme: str) -> None:
    chromium.scheme(scheme)
    chromium.resize(390, 800)
    chromium.go(site.as_uri())
    chromium.wait("typeof charts !== 'undefined' && charts.length > 5")
    chromium.run("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    chromium.wait("[...document.querySelectorAll('details[open]')].every((d) => d.childElementCount > 1)")
    chromium.run("charts.forEach((chart) => chart.draw())")
    assert chromium.run("charts.filter((c) => c.made.traces.length === 0).map((c) => c.spec.title)") == []
    assert chromium.run("document.documentElement.scrollWidth") <= 390
