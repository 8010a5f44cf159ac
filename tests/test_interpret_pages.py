"""The latent page: its files say what the view's files say, whatever the tokens; and, in a browser, what a reader does."""

from __future__ import annotations

import base64
import json
import re
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saebench.checks import InputError
from saebench.interpret.pack import FIRST, PREFIX, SUFFIX, SURROGATES, Alphabet, write_script
from saebench.interpret.pages import ASSETS, browse, build_pages
from tests.browser import Browser, find
from tests.synthetic_latents import DEAD, NAMES, STRANGE, VOCABULARY, write_scores, write_view

D_SAE = 200  # four chunks, the last one not full
VIEW = "full-200-16-topk-0a1b2c"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the pages of one view."""
    run = tmp_path_factory.mktemp("runs") / "topk-1"
    folder = write_view(run / "interpretability" / VIEW, D_SAE)
    build_pages(folder, run / "interpretability" / "pages")
    return run


def value_of(path: Path) -> Any:
    """What a data file's script passes to receive()."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith(PREFIX)
    assert text.endswith(SUFFIX)
    return json.loads(text[len(PREFIX) : -len(SUFFIX)])


def texts(characters: str, vocabulary: list[str]) -> list[str]:
    """The texts of tokens written as characters."""
    codes = [ord(c) - FIRST - (0x800 if ord(c) >= SURROGATES else 0) for c in characters]
    return [vocabulary[code] for code in codes]


def numbers(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def test_a_site_has_the_page_and_a_data_file_for_every_64_latents(run: Path) -> None:
    site = run / "interpretability" / "pages"
    assert {p.name for p in ASSETS.iterdir()} | {"views.js", VIEW} == {p.name for p in site.iterdir()}
    assert sorted(p.name for p in (site / VIEW / "data").iterdir()) == ["0000.js", "0001.js", "0002.js", "0003.js"]
    assert value_of(site / "views.js") == {"run": "topk-1", "views": [{"name": VIEW, "label": "full-200-16-topk"}]}
    latents = [len(value_of(site / VIEW / "data" / f"000{i}.js")["latents"]) for i in range(4)]
    assert latents == [64, 64, 64, 8]
    scripts = re.findall(r'src="([^"]+)"', (site / "index.html").read_text(encoding="utf-8"))
    assert all((site / name).is_file() for name in scripts)


def test_contexts_on_the_page_are_those_collected(run: Path) -> None:
    root = run / "interpretability"
    examples = pq.read_table(root / VIEW / "examples.parquet").to_pandas()
    largest = pq.read_table(root / VIEW / "latents.parquet")["max_act"].to_numpy()
    for i in range(4):
        chunk = value_of(root / "pages" / VIEW / "data" / f"{i:04d}.js")
        for latent, shown in enumerate(chunk["latents"], 64 * i):
            rows = examples[examples["latent"] == latent]
            contexts = shown["contexts"]
            assert len(contexts["tokens"]) == len(rows) == (0 if latent % DEAD == DEAD - 1 else 12)
            for j, row in enumerate(rows.itertuples()):
                assert texts(contexts["tokens"][j], chunk["vocabulary"]) == [VOCABULARY[t] for t in row.tokens]
                acts = np.zeros(len(row.tokens))
                acts[contexts["acts"][j][::2]] = np.array(contexts["acts"][j][1::2]) / 1000 * largest[latent]
                np.testing.assert_allclose(acts, row.acts, atol=0.001 * largest[latent])
                assert set(contexts["acts"][j][::2]) == set(np.flatnonzero(row.acts))
                assert contexts["quantile"][j] / 10_000 == pytest.approx(row.quantile, abs=1e-4)
                assert contexts["top"][j] == (row.kind == "top")
                for name in ("document", "block", "position", "centre", "shown"):
                    assert contexts[name][j] == getattr(row, name)


def test_the_index_holds_what_the_list_shows(run: Path) -> None:
    root = run / "interpretability"
    index = value_of(root / "pages" / VIEW / "index.js")
    latents = pq.read_table(root / VIEW / "latents.parquet").to_pandas()
    for name, column in index["columns"].items():
        np.testing.assert_array_equal(numbers(column), latents[name].to_numpy(dtype=np.float32))
    assert index["tokens"] == 10_000_000
    scores = pq.read_table(root / VIEW / "scores.parquet").to_pandas()
    assert {score["name"]: score["chance"] for score in index["scores"]} == NAMES
    for score in index["scores"]:
        rows = scores[scores["score"] == score["name"]]
        wanted = np.full(D_SAE, np.nan)
        wanted[rows["latent"]] = rows["value"]
        np.testing.assert_allclose(numbers(score["values"]), wanted, rtol=1e-3)
    examples = pq.read_table(root / VIEW / "examples.parquet").to_pandas()
    for latent in range(D_SAE):
        rows = examples[(examples["latent"] == latent) & (examples["kind"] == "top")]
        centres = [VOCABULARY[row.tokens[row.centre]] for row in rows.itertuples()]
        assert texts(index["top"][latent], index["vocabulary"]) == list(dict.fromkeys(centres))
        promoted = [VOCABULARY[token] for token in latents["promoted"][latent]]
        assert texts(index["promoted"][latent], index["vocabulary"]) == promoted
    assert index["explanations"][0] == [0, "words <b>ending</b> like no. 0 & its kin, in running text"]


def test_a_data_file_holds_scores_logits_and_the_histogram_of_a_latent(run: Path) -> None:
    root = run / "interpretability"
    chunk = value_of(root / "pages" / VIEW / "data" / "0000.js")
    row = pq.read_table(root / VIEW / "latents.parquet").to_pylist()[9]
    latent = chunk["latents"][9]
    first, counts = latent["histogram_from"], latent["histogram"]
    assert row["histogram"] == [0] * first + counts + [0] * (len(row["histogram"]) - first - len(counts))
    assert texts(latent["suppressed"], chunk["vocabulary"]) == [VOCABULARY[token] for token in row["suppressed"]]
    assert latent["suppressed_logits"] == pytest.approx(row["suppressed_logits"], rel=1e-3)
    assert {score[0]: score[2] for score in latent["scores"]} == NAMES
    assert latent["explanations"][0][1] == "a judge"
    dead = chunk["latents"][DEAD - 1]
    assert dead["n_active"] == 0
    assert (dead["histogram"], dead["scores"]) == ([], [])


def test_strange_tokens_arrive_as_they_are_and_never_as_markup(run: Path) -> None:
    site = run / "interpretability" / "pages"
    assert set(STRANGE) <= set(value_of(site / VIEW / "data" / "0000.js")["vocabulary"])
    assert "alert" not in (site / "index.html").read_text(encoding="utf-8")
    for script in ASSETS.glob("*.js"):
        code = script.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|fetch\(|import ", code
        ), script


def test_a_page_names_no_other_host() -> None:
    found = {url for p in ASSETS.iterdir() for url in re.findall(r"https?://[^\s\"']+", p.read_text(encoding="utf-8"))}
    assert found == {"http://www.w3.org/2000/svg"}  # a namespace, not an address


def test_half_a_surrogate_pair_does_not_stop_the_pages(tmp_path: Path) -> None:
    write_script(tmp_path / "x.js", ["\ud800 and on"])
    assert value_of(tmp_path / "x.js") == ["? and on"]


def test_every_token_of_a_large_vocabulary_has_a_character() -> None:
    ids = np.repeat(np.arange(70_000), 1 + (np.arange(70_000) == 69_999) * 5)
    alphabet = Alphabet(ids, 80_000)
    assert alphabet.ids[0] == 69_999  # the most frequent
    text = alphabet.write(ids)
    assert json.loads(json.dumps(text, ensure_ascii=False).encode()) == text
    vocabulary = [str(token) for token in alphabet.ids]
    assert texts(text, vocabulary) == [str(token) for token in ids]


def test_pages_are_written_again_only_when_their_sources_change(tmp_path: Path) -> None:
    folder = write_view(tmp_path / "run" / "interpretability" / "full-1", 70, each=4, scored=0)
    index = build_pages(folder, tmp_path / "site").parent / "full-1" / "index.js"
    before = index.stat()
    build_pages(folder, tmp_path / "site")
    assert index.stat().st_mtime_ns == before.st_mtime_ns
    assert value_of(index)["scores"] == []
    write_scores(folder, np.random.default_rng(0), np.array([3, 5]))
    build_pages(folder, tmp_path / "site")
    assert [score["name"] for score in value_of(index)["scores"]] == sorted(NAMES)


def test_browse_opens_every_view_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) is None)
    run = tmp_path / "a run"
    with pytest.raises(InputError, match="saebench interpret"):
        browse(run)
    for name in ("pruned-8-aaaaaa", "prefix-8-aaaaaa", "full-16-aaaaaa", "full-16-bbbbbb"):
        write_view(run / "interpretability" / name, 10, each=2, scored=0)
    page = browse(run)
    assert opened == [page.as_uri()]
    listed = value_of(page.parent / "views.js")
    assert listed["run"] == "a run"
    assert [view["label"] for view in listed["views"]] == ["full-16-aaaaaa", "full-16-bbbbbb", "prefix-8", "pruned-8"]
    (run / "interpretability" / "full-16-bbbbbb" / "done.json").unlink()
    browse(run)
    assert [view["label"] for view in value_of(page.parent / "views.js")["views"]] == [
        "full-16",
        "prefix-8",
        "pruned-8",
    ]
    assert not (page.parent / "full-16-bbbbbb").exists()


def damaged(folder: Path, name: str, how: str) -> None:
    """Damage a view's file."""
    path = folder / name
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "column":
        pq.write_table(pq.read_table(path).drop_columns(["tokens"]), path)
    elif how == "order":
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table.slice(100), table.slice(0, 100)]), path)
    else:
        pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("vocabulary.json", "missing", "no vocabulary.json"),
        ("examples.parquet", "cut", "examples.parquet: cannot be read"),
        ("examples.parquet", "column", "no column tokens"),
        ("examples.parquet", "order", "not in order"),
        ("latents.parquet", "order", "in order"),
        ("latents.parquet", "metadata", "histogram_edges"),
    ],
)
def test_a_damaged_view_is_one_line_and_leaves_no_pages(tmp_path: Path, name: str, how: str, message: str) -> None:
    folder = write_view(tmp_path / "full-1", 130, each=4)
    damaged(folder, name, how)
    with pytest.raises(InputError, match=message) as caught:
        build_pages(folder, tmp_path / "site")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert not list(tmp_path.glob("site/*"))


# in a browser

ROWS = "document.querySelectorAll('.row').length"
FIRST_ROW = "document.querySelector('.row .number').textContent"
SPANS = "[...document.querySelectorAll('.contexts li:first-child .text span:not(:has(span))')].map(s => s.textContent)"
TITLE = "document.querySelector('#detail h2 b')?.textContent"


def typed(text: str) -> str:
    """What a person does who replaces the search by `text`."""
    search = "const search = document.getElementById('search');"
    return f"{{ {search} search.value = {json.dumps(text)}; search.dispatchEvent(new Event('input')); }}"


def picked(name: str, value: str) -> str:
    """What a person does who picks `value` in a list of choices."""
    select = f"const select = document.getElementById('{name}');"
    return f"{{ {select} select.value = {json.dumps(value)}; select.dispatchEvent(new Event('change')); }}"


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    """A browser that must have reported no error and asked no other host for anything in the end."""
    if find() is None:
        pytest.skip("no Chromium is installed: on Debian, apt-get install chromium")
    with Browser(tmp_path / "profile") as browser:
        yield browser
        assert browser.errors == []
        assert {url.partition(":")[0] for url in browser.requested} <= {"file", "data"}


@pytest.mark.long
def test_a_reader_sorts_searches_and_opens_latents(run: Path, chromium: Browser) -> None:
    page = (run / "interpretability" / "pages" / "index.html").as_uri()
    latents = pq.read_table(run / "interpretability" / VIEW / "latents.parquet").to_pandas()
    chromium.go(page)
    chromium.wait(f"{ROWS} > 0")
    assert chromium.run("document.getElementById('count').textContent") == "175 latents"
    assert chromium.run(ROWS) < 40  # only what is in sight
    chromium.run(picked("sort", "frequency"))
    assert chromium.run(FIRST_ROW) == str(latents["frequency"].idxmax())
    chromium.run(picked("sort", "score:detection"))
    scores = pq.read_table(run / "interpretability" / VIEW / "scores.parquet").to_pandas()
    best = scores[scores["score"] == "detection"].sort_values("value")["latent"].iloc[-1]
    assert chromium.run(FIRST_ROW) == str(best)
    chromium.press("ArrowDown")
    chromium.wait(f"{TITLE} === '{best}'")
    assert chromium.run("document.querySelectorAll('.contexts li').length") == 12
    chromium.press("c")
    chromium.wait("document.querySelectorAll('.contexts li').length === 6")
    chromium.press("/")
    assert chromium.run("document.activeElement.id") == "search"
    chromium.run(typed("#42"))
    assert chromium.run(FIRST_ROW) == "42"
    chromium.click(".row")
    chromium.wait(f"{TITLE} === '42'")
    assert "latent=42" in chromium.run("location.hash")
    chromium.run("history.back()")
    chromium.wait(f"{TITLE} === '{best}'")


@pytest.mark.long
def test_a_search_finds_tokens_and_explanations(run: Path, chromium: Browser) -> None:
    latents = pq.read_table(run / "interpretability" / VIEW / "latents.parquet")
    token = VOCABULARY.index("<script>alert(1)</script>")
    promoting = {i for i, ids in enumerate(latents["promoted"].to_pylist()) if token in ids}
    chromium.go((run / "interpretability" / "pages" / "index.html").as_uri())
    chromium.wait(f"{ROWS} > 0")
    chromium.run(typed('"<script>alert(1)</script>"'))
    found = set(chromium.run("list.latents"))
    assert promoting <= found < set(range(D_SAE))
    chromium.run(typed("like no. 17 &"))
    assert chromium.run("list.latents") == [17]
    chromium.run(typed("nowhere to be found"))
    assert chromium.run("document.getElementById('count').textContent") == "No latent found"


@pytest.mark.long
def test_a_shared_link_opens_its_latent_with_its_tokens_as_text(run: Path, chromium: Browser) -> None:
    chromium.go((run / "interpretability" / "pages" / "index.html").as_uri() + "#latent=130")
    chromium.wait(f"{TITLE} === '130'")
    rows = pq.read_table(run / "interpretability" / VIEW / "examples.parquet").to_pandas()
    row = rows[rows["latent"] == 130].iloc[0]
    shown = chromium.run(f"{SPANS}.slice(0, {len(row['tokens'])})")
    assert len(shown) == len(row["tokens"])
    plain = [(a, VOCABULARY[t]) for a, t in zip(shown, row["tokens"], strict=True) if VOCABULARY[t].isprintable()]
    assert all(a == (b or "∅") for a, b in plain)
    assert chromium.run("document.querySelectorAll('#detail script, #detail b:not(h2 b)').length") == 0
    chromium.run("location.hash = '#latent=7'")  # never active
    chromium.wait(f"{TITLE} === '7'")
    assert "never active" in chromium.run("document.querySelector('.reading').textContent")
    chromium.run("location.hash = '#latent=200'")
    assert chromium.wait("document.querySelector('.error')?.textContent").startswith("There is no latent 200")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shaded_text_is_legible(run: Path, chromium: Browser, scheme: str) -> None:
    chromium.scheme(scheme)
    chromium.go((run / "interpretability" / "pages" / "index.html").as_uri() + "#latent=3")
    chromium.wait("document.querySelectorAll('.active').length > 0")
    ratios = chromium.run(CONTRAST)
    assert min(ratios) >= 4.5
    assert max(ratios) > min(ratios)  # shaded by activation


CONTRAST = """(() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const part = (x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  return Array.from(document.querySelectorAll(".active"), (node) => {
    const style = getComputedStyle(node);
    const [a, b] = [luminance(style.color), luminance(style.backgroundColor)].sort((x, y) => x - y);
    return (b + 0.05) / (a + 0.05);
  });
})()"""
