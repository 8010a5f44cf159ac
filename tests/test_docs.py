"""Every command in README.md and docs/ is parsed and composed; in the long tests those that can are run on the embedded model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from saebench.tables import COLUMNS
from tests.doc_checks import GROUP, check_one, telling
from tests.doc_commands import PAGES, ROOT, Answer, Asked, blocks, elsewhere, inline, run_page
from tests.doc_runs import MADE, edited, run_small, write_inputs, write_made


def runnable(page: Path) -> bool:
    """Whether any block of a page is to be run here."""
    return any("" not in {of for _, of in block.needs} for block in blocks(page))


TEXTS = [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *(ROOT / "outputs" / "reference").glob("*/README.md")]
with_commands = pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.stem)


@with_commands
def test_every_command_is_one(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_made(tmp_path)

    def checked(asked: Asked) -> Answer:
        check_one(asked)
        return 0, f"{MADE}\n"

    with edited(page, tmp_path, monkeypatch):
        run_page(page, tmp_path, checked)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_stand_where_tests_see_them(page: Path) -> None:
    assert list(elsewhere(page)) == [], "put commands into ```bash blocks"
    for span in inline(page):
        name, *words = shlex.split(span)[1:]
        if name in GROUP.commands:  # `saebench COMMAND` is a pattern
            known = {opt for param in GROUP.commands[name].params for opt in (*param.opts, *param.secondary_opts)}
            assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in known] == [], span
        else:
            assert name.isupper(), f"{page}: {span}: there is no such command"


def test_what_is_no_command_is_found(tmp_path: Path) -> None:
    wrong = {
        "saebench trian": "no such command",
        "saebench train --seed 3": "No such option",
        "saebench train sae.kk=3": "did you mean sae.k?",
        "saebench prune RUN": "--keep",
        "rm -rf /": "rm",
        "saebench train $NOWHERE": "NOWHERE",
        "pip install saebench[gpus]": "gpus",
    }
    for command, told in wrong.items():
        page = tmp_path / "page.md"
        page.write_text(f"# Page\n\n```bash\n{command}\n```\n")
        with pytest.raises(AssertionError, match=re.escape(told)):
            run_page(page, tmp_path, check_one)


def test_blocks_are_bash(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    code = "W='a b=\"c d\"'; for i in one two; do\n saebench $i \\\n  $W | tail -n 1; done\n"
    page.write_text(f"<!-- needs: gpu, for two -->\n```bash\n{code}```\n")
    seen: list[tuple[list[str], list[str]]] = []

    def note(asked: Asked) -> Answer:
        seen.append((asked.argv, asked.block.needed(asked.argv)))
        return 0, "text\n"

    run_page(page, tmp_path, note)
    assert seen == [
        (["saebench", "one", "a", 'b="c', 'd"'], []),
        (["saebench", "two", "a", 'b="c', 'd"'], ["gpu"]),
    ]
    page.write_text("<!-- needs: luck -->\n```bash\nsaebench train\n```\n")
    with pytest.raises(AssertionError, match="reasons are"):
        blocks(page)


def test_every_column_that_tables_read_is_defined() -> None:
    assert set(COLUMNS) <= defined_columns()


@pytest.mark.long
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=lambda page: page.stem)
def test_every_command_that_can_be_run_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    write_inputs(tmp_path)

    def ran(asked: Asked) -> Answer:
        if asked.block.needed(asked.argv):
            return 0, f"{MADE}\n"
        assert asked.argv[0] == "saebench", f"{asked}: put <!-- needs: REASON --> before the block"
        with telling(asked):
            return 0, run_small(asked.argv[1:])

    with edited(page, tmp_path, monkeypatch):
        run_page(page, tmp_path, ran)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        if not block.needs:
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)


@pytest.mark.long
def test_options_of_torchrun_are_its_own(tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser  # takes seconds

    seen = []

    def parsed(asked: Asked) -> Answer:
        if asked.argv[0] == "torchrun":
            with telling(asked):
                seen.append(get_args_parser().parse_args(asked.argv[1:]).training_script)
        return 0, f"{MADE}\n"

    write_made(tmp_path)
    for page in PAGES:
        run_page(page, tmp_path, parsed)
    assert {*seen} == {"saebench"}


@pytest.mark.long
def test_the_columns_of_metrics_are_those_defined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_small(["train"]).splitlines()[-1]
    header = (Path(run) / "metrics.csv").read_text().splitlines()[0]
    assert set(header.split(",")) == defined_columns()


def defined_columns() -> set[str]:
    """The columns in the last table of docs/results.md."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition("## Columns of metrics.csv")[2]
    cells = re.findall(r"^\| ([^|]*`) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_taken_for_a_tag(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"<[A-Za-z_/][^>\n]*>", text) == []
