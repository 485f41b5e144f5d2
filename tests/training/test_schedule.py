"""When the monitor measures: early, at alarms, and within its budget by counts and by the clock."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.training import StabilityMonitor, schedule
from eos_sde.training.linear_rules import RULES
from eos_sde.training.pace import Pace
from eos_sde.training.schedule import Price
from solvers import InvalidInput

INTERVAL = 50


def quadratic(w, x, y):
    return 0.5 * jnp.mean((x @ w - y) ** 2)


LINE = (jnp.sqrt(2.0) * jnp.diag(jnp.sqrt(jnp.array([4.0, 1.0]))), jnp.zeros(2))  # H = diag(4, 1)


def play(suspicious, prices):
    """Steps that measure, where `suspicious` says which measurements raise an alarm; the debt after each step."""

    def step(carry, now):
        state, count, alarms = carry
        alarm, price = now
        due = schedule.is_due(state, count, alarm & (alarms == 0), INTERVAL, None)
        alarms = jnp.where(due, jnp.where(alarm, alarms + 1, 0), alarms)
        after = schedule.advance(state, count, alarms, price, INTERVAL)
        state = jax.tree.map(lambda new, old: jnp.where(due, new, old), after, state)
        return (state, count + 1, alarms), (due, state.debt)

    start = (schedule.begin(), jnp.int32(0), jnp.int32(0))
    _, (due, debt) = jax.lax.scan(step, start, (jnp.asarray(suspicious), jnp.asarray(prices, jnp.int32)))
    return np.asarray(due), np.asarray(debt)


def test_the_start_is_measured_at_once_and_then_ever_more_rarely():
    due, debt = play(np.zeros(2000, bool), np.full(2000, INTERVAL))
    # 1, 2, 4, ..., 32 owe six intervals, which the waits after 50, 150, ..., 550 pay by being twice as long
    paying, regular = range(50, 651, 100), range(700, 2000, 50)
    assert list(np.flatnonzero(due)) == [0, 1, 2, 4, 8, 16, 32, *paying, *regular]
    assert debt[549] > 0
    assert debt[550] == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_price_of_all_measurements_is_bounded_whatever_happens(seed):
    rng = np.random.default_rng(seed)
    steps = 20_000
    # spells of alarms of all lengths, and measurements up to twice as dear as typical ones
    suspicious = np.repeat(rng.random(steps) < 0.5, rng.geometric(0.05, steps))[:steps]
    prices = rng.integers(INTERVAL // 2, 2 * INTERVAL, steps)
    due, _ = play(suspicious, prices)
    spent = np.cumsum(np.where(due, prices, 0))
    # the steps so far, the last regular measurement, room for a burst, and one burst that began with room:
    # each of the two at most 2 + log2(interval) measurements, the second at up to twice the typical price
    burst = INTERVAL * (1 + INTERVAL.bit_length())
    assert np.all(spent <= np.arange(1, steps + 1) + 2 * INTERVAL + burst + 2 * burst)
    # and nothing is left unused: in the end at least one measurement in two intervals of the dearest
    assert spent[-1] > steps / 2


def test_an_alarm_is_measured_at_once_and_again_while_it_stands():
    suspicious = np.zeros(2000, bool)
    suspicious[1777:1790] = True
    due, _ = play(suspicious, np.full(2000, INTERVAL))
    around = np.flatnonzero(due[1770:1800]) + 1770
    assert list(around) == [1777, 1778, 1779, 1781, 1785, 1793]  # the last finds no alarm, and ends the burst


@pytest.mark.parametrize("rule", RULES)
def test_a_fixed_interval_is_left_only_for_alarms(rule):
    monitor = StabilityMonitor(quadratic, rule=rule, every=7)
    assert monitor.steps_between(16, 64) == 7
    state = monitor.init(jnp.ones(2))
    assert not bool(schedule.is_due(state.schedule, jnp.int32(1), jnp.zeros((), bool), 7, 7))
    assert bool(schedule.is_due(state.schedule, jnp.int32(14), jnp.zeros((), bool), 7, 7))
    assert bool(schedule.is_due(state.schedule, jnp.int32(1), jnp.ones((), bool), 7, 7))


def test_interval_keeps_the_counted_cost_within_the_overhead():
    monitor = StabilityMonitor(quadratic, overhead=0.05)
    for batch, probe in itertools.product((16, 256), (64, 256)):
        # 4.5 products of 3 gradients of the probe data, 9 for the rest, and 4 gradients of the batch
        assert (22.5 * probe / batch + 4) / monitor.steps_between(batch, probe) <= 0.05


def test_dearer_measurements_wait_longer():
    price = Price.counted(64, 64, 0.04)
    assert int(price.of_steps(jnp.asarray(3))) == int(np.ceil((9 + 4 + 3 * 3) / 0.04))
    assert int(price.of_steps(jnp.asarray(15))) == int(np.ceil((9 + 4 + 3 * 15) / 0.04))


def test_pace_divides_what_idling_leaves_of_the_overhead():
    pace = Pace(step=1e-3, idle=2e-5, measurement=4e-3, products=3.0, compilation=1.0, sizes=(64, 64))
    price = pace.price(0.1)
    # 100 us of a step less 20 us of idling leave 80 us; 4 ms are 50 times that
    assert price.fixed + 3.0 * price.product == pytest.approx(50.0, rel=1e-12)
    # with equal sizes 13 gradients beside the products, and 3 for each
    assert price.fixed / price.product == pytest.approx(13 / 3, rel=1e-12)


def test_a_paced_monitor_goes_by_its_clock():
    monitor = StabilityMonitor(quadratic, rule="gd", overhead=0.1)
    paced = monitor.paced(jnp.ones(2), LINE, step=1.0)  # 0.1 s for the monitor: no scan idles so long
    assert paced.pace.step == 1.0
    assert paced.pace.idle > 0
    assert paced.pace.compilation > 0
    assert paced.pace.products >= 1
    assert paced.steps_between(2, 2) == paced.pace.price(0.1).typical
    assert monitor.pace is None


def test_pace_refuses_an_overhead_that_idling_exceeds():
    monitor = StabilityMonitor(quadratic, rule="gd", overhead=0.01)
    with pytest.raises(InvalidInput, match=r"overhead=0\.01 cannot be kept"):
        monitor.paced(jnp.ones(2), LINE, step=1e-7)  # 1 ns for the monitor: less than any step of a scan
    with pytest.raises(InvalidInput, match="step=-1"):
        monitor.paced(jnp.ones(2), LINE, step=-1.0)
