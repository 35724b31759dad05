"""Progress: a line for each finished cell in a log, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from spectral.app.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(kept: list[bool]) -> None:
    with Progress("sweep", len(kept)) as progress:
        for place, was_kept in enumerate(kept):
            progress.begin(f"cell{place}")
            progress.end(was_kept)


def test_a_log_gets_one_line_for_each_finished_cell(capsys) -> None:
    run([False, False])
    shown = capsys.readouterr()
    first, second = shown.err.splitlines()
    assert shown.out == "" and "\r" not in shown.err
    assert first.startswith("sweep 1/2: cell0, ") and first.endswith(" left")
    assert second.startswith("sweep 2/2: cell1, ") and "left" not in second


@pytest.mark.parametrize("kept", [[True, True, False], [True, True, True]])
def test_cells_that_were_kept_are_one_line(kept: list[bool], capsys) -> None:
    run(kept)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"sweep {sum(kept)}/3: {sum(kept)} kept from before"
    assert len(lines) == 1 + kept.count(False)
    if not all(kept):
        assert lines[1].startswith("sweep 3/3: cell2, ")


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run([False, False])
    assert "2/2" in terminal.getvalue() and "sweep 1/2:" not in terminal.getvalue()
    assert "\r" in terminal.getvalue()
