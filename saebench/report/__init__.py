"""The report: outputs in, one page out that needs no network. Imports pandas and matplotlib: import it only where it is used."""

from __future__ import annotations

from pathlib import Path

from saebench.checks import InputError, require
from saebench.report.claims import read_verdicts
from saebench.report.html import page_of
from saebench.report.pictures import read_pictures
from saebench.report.runs import read_records, sections_of
from saebench.report.studies import read_studies
from saebench.report.tables import read_extras
from saebench.store import write_text


def write_report(outputs: Path) -> Path:
    """Write outputs/report/index.html from tables, claims.csv, figures and, where they are, the runs themselves; its path.

    Raises InputError without tables, or without the library that draws.
    """
    require(outputs.is_dir(), f"outputs={outputs}: there is no such folder; name one that saebench wrote")
    verdicts, records = read_verdicts(outputs), read_records(outputs)
    value = {
        "studies": read_studies(outputs),
        "sections": sections_of(verdicts, records),
        "claims": verdicts,
        "runs": records,
        "extras": read_extras(outputs),
        "pictures": read_pictures(outputs),
    }
    path = outputs / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page_of(outputs.resolve().name, value, library()))
    return path


def library() -> str:
    """Plotly's JavaScript, which the page carries. Raises InputError if the package is not installed."""
    try:
        from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"report: needs plotly, whose script draws its figures ({error}); pip install 'saebench[report]'"
        ) from error
    return get_plotlyjs()
