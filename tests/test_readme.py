"""The README's Python runs as written, and its quick start is two commands of one line."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_quick_start_is_two_commands_of_one_line():
    section = README.split("## Quick start")[1].split("\n## ")[0]
    commands = re.findall(r"```\n(.*?)```", section, re.S)
    assert len(commands) == 2
    assert all(command.strip().count("\n") == 0 for command in commands)
    assert commands[0].strip().endswith("eos-sde replay")
    assert commands[1].strip().endswith("pytest")


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a sweep leaves its store
    jnp = pytest.importorskip("jax.numpy")
    names = {"loss": lambda w: jnp.sum(jnp.array([1.0, 3.0]) * w**2), "params": jnp.ones(2)}
    assert len(BLOCKS) >= 4
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    state = names["optimizer"].init(names["params"])
    _, state = names["step"](names["params"], state)
    assert float(state.sharpness) == pytest.approx(6.0, rel=1e-6)
    assert float(state.learning_rate) == pytest.approx(1.9 / 6.0, rel=1e-6)  # the cap binds
