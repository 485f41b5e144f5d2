"""Specifications in TOML: what they mean, and every mistake at once with its line."""

import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eos_sde.sweeps.spec import BadSpec, parsed_spec
from eos_sde.sweeps.spec_lines import located
from solvers.errors import InvalidInput

GOOD = """
observable = "gap"

[settings]
model = "flip-normal-form"
C = 1.0
grid = { A = [-0.8, 0.8, 50] }

[axes]
mu = { from = 0.01, to = 1.0, count = 3, spacing = "log" }
s = [0.05,
     0.1]
"""
BAD = """
observable = "gap"
colour = "red"

[settings]
model = "flip-normal-form"
C = "one"
grid = { A = [0.8, -0.8, 50] }
horizon = 3

[axes]
mu = { from = -0.05, to = 0.1, counts = 31 }
s = [0.05,
     "a"]
t =
nu = [1, 1]

[[zip]]
alpha = [1, 2]
beta = [1]
"""


def lines_of(text, **more):
    with pytest.raises(BadSpec) as told:
        parsed_spec(text, **more)
    return {int(line) for line in re.findall(r"line (\d+):", str(told.value))}, str(told.value)


def test_a_good_specification():
    plan = parsed_spec(GOOD)
    assert [axis.dim for axis in plan.axes] == ["mu", "s"]
    assert plan.axes[0].values["mu"].tolist() == pytest.approx([0.01, 0.1, 1.0], rel=1e-15)
    assert plan.points == 6
    assert plan.attrs["spec"] == GOOD


def test_zips_counts_and_seeds():
    text = """
observable = "ensemble"
[settings]
model = "quadratic-map"
curvature = 1.0
paths = 10
steps = 5
y0 = 1.0
[axes]
seed = { count = 3 }
[[zip]]
eta = [0.1, 0.2]
noise = [1.0, 2.0]
"""
    assert parsed_spec(text).axes[0].values["seed"].tolist() == [0, 1, 2]
    plan = parsed_spec(text, seed=7)
    assert plan.axes[0].values["seed"].tolist() == [7, 8, 9]
    assert plan.axes[1].dim == "eta_noise"
    assert plan.axes[1].rows() == [(0.1, 1.0), (0.2, 2.0)]
    moved = text.replace("[axes]\nseed = { count = 3 }\n", "").replace("y0 = 1.0", "y0 = 1.0\nseed = 1")
    assert parsed_spec(moved, seed=7).job.settings["seed"] == 7


def test_every_mistake_is_told_at_once_with_its_line():
    lines, text = lines_of(BAD, name="bad.toml")
    assert text.startswith("bad.toml has ")
    assert lines == {3, 7, 8, 9, 12, 13, 15, 16, 18}, text
    parts = (
        "'colour' is not known", "'one' is no number", "A goes from 0.8 to -0.8", "'horizon' is not known",
        "'count' is missing", "'counts' is not known", "has the value 'a'", "1 twice", "equally long",
    )  # fmt: skip
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("change", "line", "text"),
    [
        (('"gap"', '"gaps"'), 2, "'gaps' is not known: choose one of gap"),
        (('observable = "gap"', ""), 1, "give an observable or a function"),
        (('observable = "gap"', 'function = "nowhere:f"'), 2, "nowhere cannot be imported"),
        (('observable = "gap"', 'function = "math:nothing"'), 2, "math has no function 'nothing'"),
        (("C = 1.0", "C = 1.0\nC = 2.0"), 7, "overwrite"),
        (("C = 1.0", "mu = 1.0"), 6, "an axis and a setting"),
        (("C = 1.0", ""), 4, "model 'flip-normal-form' needs C"),
        (('model = "flip-normal-form"', ""), 4, "'model' is missing"),
        (("flip-normal-form", "flop"), 5, "'flop' is not known: choose one of gradient-flow"),
        (("50]", "50.5]"), 7, "integer"),
        (("50]", "0]"), 7, "greater than or equal to 1"),
        (("count = 3", "count = 1"), 10, "greater than or equal to 2"),
        (("0.01, to", "-0.01, to"), 10, "positive ends"),
        (('"log"', '"cubic"'), 10, "spacing"),
        (("0.05,", "nan,"), 11, "not finite"),
        (
            ("[axes]", "[axis]"),
            9,
            "'axis' is not known: choose among observable, function, axes, zip, settings",
        ),
        (("s = [0.05,\n     0.1]", "s = [0.05, 0.1\n"), 11, "Unclosed array"),
    ],
)
def test_one_mistake_is_told_with_its_line(change, line, text):
    lines, told = lines_of(GOOD.replace(*change))
    assert line in lines, told
    assert text in told


def test_lines_of_nested_keys():
    found = located(
        'a = 1\n[b.c]\nd = [1,\n 2]\ne.f = """\n[x]\n"""\n[[g]]\nh = 1\n[[g]]\n"h i" = { j = 2 }\n'
    )
    assert found.line(("a",)) == 1
    assert found.line(("b", "c", "d")) == 3
    assert found.line(("b", "c", "e", "f")) == 5
    assert found.line(("g", 0, "h")) == 9
    assert found.line(("g", 1, "h i", "j")) == 11
    assert found.line(("g", 1, "nothing")) == 10
    assert not found.broken


ODD = """[[axes]]|[axes.mu]|axes = 3|settings = []|zip = [1]|[zip]|seed = -1|mu = { count = 10000001 }|grid = []
function = "os:getpid"|follow = "mu"|model = 3|mu = [[1]]|s = {}|mu = [9223372036854775808]|x = [true, 1]
boundary = "walls"|observable = "spectrum"|observable = "ensemble"|observable = "threshold"|over = "mu"
criterion = "gap"|bracket = [0, 1]|# é|"|'''|]|= 1|mu = { from = 1e308, to = -1e308, count = 3 }
at = 2020-01-01|k = inf|model = ["a"]|observable = 1"""
WORDS = st.sampled_from([*GOOD.split("\n"), *BAD.split("\n"), *ODD.replace("\n", "|").split("|")])


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=25).map("\n".join)))
def test_no_text_brings_the_parser_down(text):
    try:
        plan = parsed_spec(text)
    except InvalidInput as refusal:
        lines = [int(line) for line in re.findall(r"line (\d+):", str(refusal))]
        assert lines
        assert all(1 <= line <= text.replace("\r\n", "\n").count("\n") + 1 for line in lines)
    else:
        assert plan.points >= 1
        tomllib.loads(text)
