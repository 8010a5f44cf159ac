"""The site of the documentation: its reference names all there is; built, it needs no network, and search works from disk."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from saebench.config import flatten
from saebench.sae_configs import SAE_VARIANTS
from tests import browser
from tests.doc_checks import GROUP
from tests.doc_commands import ROOT

FETCHED = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//", re.IGNORECASE)


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """The reference pages by their addresses."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "hooks" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {uri: made() for uri, made in module.PAGES.items()}


def test_every_key_is_in_the_reference(reference: dict[str, str]) -> None:
    groups = ("model", "data", "train", "evaluate", "sparsity", "engine", "tracker")
    keys = {key for group in groups for path in (ROOT / "conf" / group).glob("*.yaml") for key in keys_of(path, group)}
    keys |= set(flatten(yaml.safe_load((ROOT / "conf" / "interpret.yaml").read_text(encoding="utf-8"))))
    assert {key for key in keys if f"| `{key}` |" not in reference["reference/configuration.md"]} == set()
    keys = {key for path in (ROOT / "conf" / "sae").glob("*.yaml") for key in keys_of(path, "sae")}
    assert {key for key in keys if f"| `{key}` |" not in reference["reference/variants.md"]} == set()


def keys_of(path: Path, group: str) -> list[str]:
    """The keys of an option's YAML, dotted."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [f"{group}.{key}" for key in found if key != "defaults"]


def test_every_variant_and_command_is_in_the_reference(reference: dict[str, str]) -> None:
    variants = re.findall(r"^## sae=(\w+)$", reference["reference/variants.md"], re.MULTILINE)
    assert variants == list(SAE_VARIANTS)
    commands = re.findall(r"^## (\w+)$", reference["reference/commands.md"], re.MULTILINE)
    assert commands == GROUP.list_commands(None)
    for name in ("saebench.load", "saebench.attach", "saebench.export", "SparseLatents.dense", "SAE.encode"):
        assert re.search(rf"^##+ .*\b{name}$", reference["reference/python.md"], re.MULTILINE), name


def test_tables_have_as_many_cells_in_each_row(reference: dict[str, str]) -> None:
    for page in reference.values():
        for block in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed; make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_no_page_fetches_anything(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := FETCHED.findall(page.read_text(encoding="utf-8")))} == {}


@pytest.fixture
def page(site: Path, tmp_path: Path) -> Iterator[Any]:
    if browser.find() is None:
        pytest.skip("no Chromium is installed")
    with browser.Browser(tmp_path / "profile") as opened:
        opened.go((site / "index.html").as_uri())
        opened.wait("document.readyState === 'complete'")
        yield opened
        assert opened.errors == []
        assert [url for url in opened.requested if not url.startswith(("file:", "data:", "blob:", "about:"))] == []


@pytest.mark.long
def test_search_works_from_disk(page: Any) -> None:
    page.wait("document.querySelector('.md-search__input') !== null")
    page.run("document.querySelector('.md-search__input').focus()")
    page.press(*"stats_tokens")
    found = page.wait(
        "[...document.querySelectorAll('.md-search-result__link')].map(a => a.getAttribute('href')).join(' ')"
    )
    assert "reference/configuration.html" in found


@pytest.mark.long
def test_pages_are_as_wide_as_the_window_and_follow_the_scheme(page: Any, site: Path) -> None:
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        for width in (1400, 390):
            page.resize(width, 900)
            for name in ("index", "results", "reference/commands"):
                page.go((site / f"{name}.html").as_uri())
                page.wait(f"document.readyState === 'complete' && location.pathname.endsWith('{name}.html')")
                assert page.run("document.documentElement.scrollWidth <= innerWidth"), (scheme, width, name)
        backgrounds.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
