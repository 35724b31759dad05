"""`make papers`: the format of its rows, its verdicts, and that what is expected follows from the arguments given for it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import papers
from published import ROWS, arguments
from published.measured import farthest


def number(relation="=", **rest):
    return {"quantity": "q", "expected": 1.0, "relation": relation, **rest}


def test_a_number_is_green_within_its_sizes_and_three_errors():
    held = number(finite_size=0.1, why="sizes")
    assert papers.green(held, 1.39, 0.1) and not papers.green(held, 1.41, 0.1)
    assert papers.green(held, 0.61, 0.1) and not papers.green(held, 0.59, 0.1)
    assert not papers.green(held, float("nan"), 0.1) and not papers.green(held, 1.0, float("nan"))
    assert not papers.green({**held, "error_at_most": 0.05}, 1.0, 0.1), "too noisy to tell"


def test_an_order_must_be_seen_beyond_two_errors():
    assert papers.green(number(">"), 1.3, 0.1) and not papers.green(number(">"), 1.1, 0.1)
    assert papers.green(number("<"), 0.7, 0.1) and not papers.green(number("<"), 0.9, 0.1)


def test_an_interval_holds_its_ends():
    held = {"quantity": "q", "expected": [3, 4]}
    assert papers.green(held, 3.0, 0.0) and papers.green(held, 4.0, 0.0)
    assert not papers.green(held, 2.9, 0.0) and not papers.green(held, 4.1, 0.0)


def test_a_count_is_held_seed_by_seed():
    """One spike too few and one too many are not five each: their mean is."""
    held = {"quantity": "spikes", "expected": 5}
    assert papers.green(held, *farthest([5, 5], 5)[:2])
    assert not papers.green(held, *farthest([4, 6], 5)[:2]) and not papers.green(held, *farthest([5, 6, 5], 5)[:2])


def test_every_row_has_a_function_and_every_function_a_row():
    rows = papers.expectations()
    assert list(rows) == list(ROWS) and len(rows) >= 16
    for row in rows.values():
        assert len({n["quantity"] for n in row["numbers"]}) == len(row["numbers"])


def test_a_row_without_source_or_argument_is_refused(tmp_path):
    row = {
        "name": "r",
        "paper": "p",
        "source": "s",
        "claim": "c",
        "matrix": "m",
        "estimator": "e",
        "seeds": "1",
        "numbers": [],
    }
    for broken, said in (
        ({k: v for k, v in row.items() if k != "source"}, "lacks source"),
        ({**row, "numbers": [{"quantity": "q", "expected": 1, "finite_size": 0.1}]}, "without a why"),
        ({**row, "numbers": [{"quantity": "q", "expected": 1, "relation": "~"}]}, "a relation"),
    ):
        (tmp_path / "rows.json").write_text(json.dumps({"rows": [broken]}))
        with pytest.raises(ValueError, match=said):
            papers.expectations(tmp_path / "rows.json")


def hold(arguments_of):
    rows = papers.expectations()
    for name, quantity, expected, finite in arguments_of():
        (stored,) = [n for n in rows[name]["numbers"] if n["quantity"] == quantity]
        assert stored["expected"] == pytest.approx(expected, rel=1e-4, abs=1e-12), (name, quantity)
        if stored.get("finite_size", 0) > 1e-10:  # below it stands for rounding
            assert stored["finite_size"] == pytest.approx(finite, rel=0.01), (name, quantity)


@pytest.mark.parametrize("argument", arguments.CHEAP, ids=lambda f: f.__name__)
def test_expected_numbers_follow_from_their_arguments(argument):
    hold(argument)


@pytest.mark.slow
@pytest.mark.parametrize("argument", [a for a in arguments.ALL if a not in arguments.CHEAP], ids=lambda f: f.__name__)
def test_other_expected_numbers_do_too(argument):
    hold(argument)


QUICK = ("softmax_at_zero", "planted_spikes")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ROWS) - set(QUICK)))
def test_every_row_is_green(name):
    row = papers.run(papers.expectations()[name])
    assert row["verdict"] == "green", row


@pytest.mark.parametrize("name", QUICK)
def test_a_row_is_run_judged_and_shown(name):
    row = papers.run(papers.expectations()[name])
    assert row["verdict"] == "green", row
    stored = {"rows": [row], "environment": {"torch": "0"}, "seconds": 1.0, "workers": 1}
    again = papers.rejudged(json.loads(json.dumps(stored)))
    assert again["rows"][0]["verdict"] == "green"
    assert f"### {name}: green" in papers.markdown(stored) and "class=green>green" in papers.page(stored)


def test_a_row_that_fails_is_red_and_says_why(monkeypatch):
    monkeypatch.setitem(ROWS, "bbp", dict)
    row = papers.run(papers.expectations()["bbp"])
    assert row["verdict"] == "red" and "disagree" in row["failure"]


def test_a_table_goes_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{papers.MARKS[0]}\nold\n{papers.MARKS[1]}\nafter\n")
    papers.into(page, "new\n")
    assert page.read_text() == f"before\n{papers.MARKS[0]}\nnew\n{papers.MARKS[1]}\nafter\n"
