"""Progress: a line for each finished cell in a log, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from spectral.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(kept: list[bool]) -> None:
    with Progress("sweep", len(kept)) as progress:
        for place, was_kept in enumerate(kept):
            progress.begin(f"cell{place}")
            progress.end(was_kept)


def test_a_log_gets_one_line_for_each_finished_cell(capsys) -> None:
    run([True, False, False])
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == "" and "\r" not in shown.err
    assert lines[0] == "sweep 1/3: cell0, kept from before"
    assert lines[1].startswith("sweep 2/3: cell1, ") and lines[1].endswith(" left")
    assert lines[2].startswith("sweep 3/3: cell2, ") and "left" not in lines[2]


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run([False, False])
    assert "2/2" in terminal.getvalue() and "sweep 1/2:" not in terminal.getvalue()
    assert "\r" in terminal.getvalue()
