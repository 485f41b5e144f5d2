"""The table of a replay: numbers with their errors, records, JSON."""

import io
import json
import math

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from eos_sde import report


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.463, 0.0021, "0.4630 ± 0.0021"),
        (-0.463, 0.0021, "-0.4630 ± 0.0021"),
        (1.0, 0.0996, "1.000 ± 0.100"),
        (123.4, 5.0, "123.4 ± 5.0"),
        (3.0, 250.0, "3 ± 250"),
        (0.0, 0.1, "0.00 ± 0.10"),
        (1234567.0, 89.0, "(1.234567 ± 0.000089)e6"),
        (0.00012, 3e-6, "(1.200 ± 0.030)e-4"),
        (0.463, 0.0, "0.463"),
        (0.463, None, "0.463"),
        (0.463, math.nan, "0.463"),
        (0.463, math.inf, "0.463"),
        (2.0, 1e-9, "2"),
        (123456.789, 0.0, "1.2346e+05"),
        (0.0, 0.0, "0"),
        (None, 0.1, "-"),
        (math.nan, 0.1, "-"),
        (math.inf, 0.1, "-"),
    ],
)
def test_numbers(value, stderr, text):
    assert report.number(value, stderr) == text


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.06135, 0.00034, "0.06135(34)"),
        (-0.06135, 0.00034, "-0.06135(34)"),
        (31.9, 1.4, "31.9(1.4)"),
        (8.86e-4, 0.52e-4, "8.86(52)e-4"),
        (1.0, 0.0996, "1.000(100)"),
        (3.0, 250.0, "3(250)"),
        (0.463, 0.0, "0.463"),
        (None, None, "-"),
    ],
)
def test_concise_numbers(value, stderr, text):
    assert report.concise(value, stderr) == text


@pytest.fixture
def dataset():
    """Two rows as a replay makes them, and a path that is no row."""
    words = {
        "units": ["time", "1"], "experiment": ["minimum", "plateau"], "verdict": ["agrees", "no prediction"],
        "model": ["2/sharpness", "published law: [bracketed] reason"],
    }  # fmt: skip
    numbers = {
        "predicted": [0.1, math.nan], "predicted_stderr": [0.0, math.nan], "measured": [0.11, 1.5],
        "measured_stderr": [0.01, math.nan],
    }  # fmt: skip
    return xr.Dataset(
        {name: ("quantity", values) for name, values in (numbers | words).items()}
        | {"path": ("step", np.zeros(3))},
        coords={"quantity": ["onset", "eta * sharpness"]},
        attrs={"task": "digits-mlp", "seed": np.int64(3), "eta": np.float64(0.25)},
    )


def test_records(dataset):
    first, second = report.rows(dataset)
    assert first == {
        "quantity": "onset", "predicted": 0.1, "predicted_stderr": 0.0, "measured": 0.11,
        "measured_stderr": 0.01, "units": "time", "experiment": "minimum", "verdict": "agrees",
        "model": "2/sharpness",
    }  # fmt: skip
    assert second["predicted"] is None
    assert second["measured"] == 1.5
    assert second["measured_stderr"] is None


def test_json_is_strict(dataset):
    def refuse(constant):
        raise AssertionError(constant)

    parsed = json.loads(report.as_json(dataset, figure="replay.png"), parse_constant=refuse)
    assert parsed["rows"] == report.rows(dataset)
    assert parsed["files"] == {"figure": "replay.png"}
    assert (parsed["task"], parsed["seed"], parsed["eta"]) == ("digits-mlp", 3, 0.25)


def test_table_for_a_terminal(dataset):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.as_table(dataset))
    text = console.export_text()
    assert "onset [time]" in text
    assert "0.110(10)" in text
    assert "-9.1 %" in text
    assert "published law: [bracketed] reason" in text  # brackets are no markup
    assert "Of 2 comparisons, 1 agree" in " ".join(text.split())
