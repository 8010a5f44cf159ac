"""The latent page: a static site, opened from disk in any browser, to read what each latent of a run responds to.

A site holds the page itself (the files of page/), views.js that names its views, and a folder for each view: index.js (what the
list shows of all latents) and data/NNNN.js (CHUNK latents each, read when one of them is looked at).
"""

from __future__ import annotations

import shutil
import webbrowser
from pathlib import Path

from saebench.checks import require
from saebench.interpret.pack import write_script
from saebench.interpret.viewdata import CHUNK, FILES, Source, chunks, index_of
from saebench.progress import Progress, say
from saebench.store import checksum, stage

FORMAT = 1  # raised when the site's files change
ASSETS = Path(__file__).parent / "page"
SITE = "pages"  # a run's site, among the folders of its views


def browse(run: Path) -> Path:
    """Bring the pages of every view of `run` up to date and open them in a browser; the page's path.

    Raises InputError if nothing has been collected in `run`.
    """
    root = run / "interpretability"
    folders = sorted(file.parent for file in root.glob("*/latents.parquet") if (file.parent / "done.json").is_file())
    require(bool(folders), f"{run}: no contexts of its latents in {root}; run `saebench interpret {run}` first")
    for folder in folders:
        build_pages(folder, root / SITE)
    for old in {p.name for p in views_in(root / SITE)} - {p.name for p in folders}:
        shutil.rmtree(root / SITE / old)
    page = write_frame(root / SITE, run.resolve().name)
    if not webbrowser.open(page.resolve().as_uri()):
        say(f"no browser found here: copy the folder {page.parent} to where there is one and open its {page.name}")
    return page


def build_pages(folder: Path, target: Path) -> Path:
    """Write the pages of one view's `folder` into the site `target` unless they are up to date; the site's index.html.

    Memory: the view's latents and one chunk of examples. Raises InputError naming the file that is missing or damaged.
    """
    for name, needed in FILES.items():
        require(not needed or (folder / name).is_file(), f"{folder}: no {name}; run `saebench interpret` again")
    sources = {name: checksum(folder / name) for name in FILES if (folder / name).is_file()}
    stage(target / folder.name, {"format": FORMAT, "sources": sources}, lambda partial: write_view(folder, partial))
    return write_frame(target, folder.resolve().parent.parent.name)


def write_view(folder: Path, target: Path) -> None:
    """Write data/ and index.js of a view."""
    source = Source(folder)
    (target / "data").mkdir()
    top = []
    with Progress(source.size, "latents", f"pages of {folder.name}") as progress:
        for i, chunk in enumerate(chunks(source)):
            write_script(target / "data" / f"{i:04d}.js", chunk.value())
            top += chunk.top_tokens()
            progress.advance(min(CHUNK, source.size - i * CHUNK))
    write_script(target / "index.js", index_of(source, top))


def write_frame(target: Path, run: str) -> Path:
    """Write the page itself and the list of the site's views, full ones first; the path of index.html."""
    names = sorted((p.name for p in views_in(target)), key=lambda name: (not name.startswith("full"), name))
    labels = [name.rpartition("-")[0] or name for name in names]  # without the key
    labels = [name if labels.count(label) > 1 else label for name, label in zip(names, labels, strict=True)]
    views = [{"name": name, "label": label} for name, label in zip(names, labels, strict=True)]
    for asset in sorted(ASSETS.iterdir()):
        shutil.copyfile(asset, target / asset.name)
    write_script(target / "views.js", {"run": run, "views": views})
    return target / "index.html"


def views_in(target: Path) -> list[Path]:
    """The folders of the views whose pages a site holds."""
    return [file.parent for file in target.glob("*/done.json")]
