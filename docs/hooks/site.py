"""What mkdocs is told beside mkdocs.yml: pages from outside docs/, pages made from the code, links between them.

README.md is the first page, outputs/reference/ is results/. Links are written as they work among the files, and are led to the
pages here.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import PAGES  # mkdocs puts the folder of a hook on the path

ROOT = Path(__file__).parents[2]
OUTSIDE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
RESULTS = "outputs/reference"
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)]*)?(?=\))")  # no scheme, no bare anchor
HEADING = re.compile(r"^# (.+)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    results = [path.relative_to(ROOT).as_posix() for path in (ROOT / RESULTS).rglob("*") if path.is_file()]
    for source in [*OUTSIDE, *sorted(results)]:
        files.append(File.generated(config, in_site(source), abs_src_path=str(ROOT / source)))
    for uri, made in PAGES.items():
        files.append(File.generated(config, uri, content=made()))
    notebook = (ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8")
    files.append(File.generated(config, "notebook.md", content=as_page(notebook)))
    add_to_nav(config, files)
    return files


def add_to_nav(config: MkDocsConfig, files: Files) -> None:
    """Put the pages of docs/ that mkdocs.yml does not name at the end of its section Guides."""
    assert config.nav is not None
    named = json.dumps(config.nav)
    guides = next(section["Guides"] for section in config.nav if "Guides" in section)
    for file in files.documentation_pages():
        if file.generated_by is None and f'"{file.src_uri}"' not in named:
            guides.append(file.src_uri)


def as_page(notebook: str) -> str:
    """The cells of a notebook in Markdown."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook)["cells"]]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to where the files they name are in the site."""
    source = of_site(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        here = posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{here}{match[3] or ''}"

    return LINK.sub(led, markdown)


def in_site(source: str) -> str:
    """Where a file of the repository is in the site, before it is made into a page."""
    if source.startswith(f"{RESULTS}/"):
        return f"results{source.removeprefix(RESULTS)}"
    return OUTSIDE.get(source, source.removeprefix("docs/"))


def of_site(uri: str) -> str:
    """The file of the repository that is at `uri` in the site."""
    outside = {there: source for source, there in OUTSIDE.items()}
    return outside.get(uri, f"{RESULTS}{uri.removeprefix('results')}" if uri.startswith("results/") else f"docs/{uri}")
