"""The page itself: a frame, the claims as HTML that needs no script, and everything else as JSON that its script shows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

from saebench import __version__
from saebench.report.studies import looks

FILES = Path(__file__).parent / "page"
SCRIPTS = ("tables.js", "charts.js", "figures.js", "forest.js", "report.js")
REASON = 160  # letters of a verdict's reason in the table of claims
SIGNS = {"reproduced": "✓", "refuted": "✗", "inconclusive": "?"}


def page_of(name: str, value: dict[str, Any], library: str) -> str:
    """The whole page of an outputs folder's `name`. Every string of `value` stands in it as text, never as markup."""
    parts = {
        "title": escape(name),
        "style": (FILES / "report.css").read_text(encoding="utf-8"),
        "about": about(value),
        "claims": claims_html(value["claims"]),
        "data": json_html(value | {"looks": looks()}),
        "library": script_html(library),
        "script": script_html("\n".join((FILES / name).read_text(encoding="utf-8") for name in SCRIPTS)),
    }
    frame = (FILES / "index.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)


def json_html(value: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def script_html(code: str) -> str:
    """Code that may stand in a script element: nothing in it ends that, or begins a comment."""
    return re.sub(r"<(?=/script|!--|script)", r"\\x3c", code, flags=re.IGNORECASE)


def about(value: dict[str, Any]) -> str:
    """A line on what the page is made of."""
    places = "; ".join(study["title"] for study in value["studies"][:3])
    more = f" and {len(value['studies']) - 3} more" if len(value["studies"]) > 3 else ""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return escape(f"{len(value['runs'])} runs · {places}{more} · saebench {__version__} · {made}")


def claims_html(claims: Sequence[dict[str, Any]]) -> str:
    """Counts of the verdicts, and a table of the claims of each experiment."""
    if not claims:
        return "<p>No claims were judged here: <code>saebench claims experiment=NAME</code> judges an experiment's.</p>"
    counts = Counter(claim["verdict"] for claim in claims)
    badges = " ".join(f"<li>{badge(verdict)} <b>{counts[verdict]}</b></li>" for verdict in SIGNS)
    rows = "".join(row_html(i, claim) for i, claim in enumerate(claims))
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Claim", "Verdict", "What is claimed", "Effect", "n"))
    return f'<ul class="counts">{badges}</ul><table class="claims"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def badge(verdict: str) -> str:
    """A verdict as a coloured word."""
    kind = verdict if verdict in SIGNS else "inconclusive"
    return f'<span class="verdict {kind}"><span aria-hidden="true">{SIGNS[kind]}</span> {escape(verdict)}</span>'


def row_html(i: int, claim: dict[str, Any]) -> str:
    """A claim as a row; its details, the whole reason among them, stand in its experiment's section."""
    reason = shorten(claim["reason"], REASON, placeholder=" …")
    what = f'{escape(claim["text"])} <small>{escape(claim["source"])}</small><p class="reason">{escape(reason)}</p>'
    number = f"{claim['pairs'] or 0:g} pairs, {claim['seeds'] or 0:g} seeds"
    named = f'<a href="#claim-{i}">{escape(claim["id"])}</a><small>{escape(claim["experiment"])}</small>'
    cells = [badge(claim["verdict"]), what, effect_html(claim), escape(number)]
    return f'<tr><th scope="row">{named}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def effect_html(claim: dict[str, Any]) -> str:
    """The effect with its 95% interval, in percent where it is relative."""
    effect, low, high = (claim[name] for name in ("effect", "low", "high"))
    if effect is None:
        return "–"
    times, unit = (100, " %") if claim["unit"] == "relative" else (1, "")
    interval = (
        f"<small>[{times * low:+.3g}, {times * high:+.3g}]</small>" if low is not None and high is not None else ""
    )
    return f"{times * effect:+.3g}{unit} {interval}"
