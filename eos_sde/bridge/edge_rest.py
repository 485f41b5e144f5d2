"""Whether full-batch training can rest at its edge: the growth of a disturbance of the oscillation there.

At rest a critical mode alternates with an amplitude X that holds its curvature z at the rule's edge z*. Let the
amplitude be (1 + a) X and the curvature z* + y. With the drive D = |T|^2 X^2 that the oscillation has on the curvature
(T the gradient of z in the coordinates w/r), the curvature k along T, and the heavy ball,

    a' = y/(1 - b),   y' = -(D a + k y)/(1 - b),   each b/(1 - b) steps late

and what acts late overshoots: to first order in D this rests only where k (1 - b)^2 > 2 b D. Here all is taken exactly,
from the map of one step (Damian, Nichani and Lee, arXiv:2209.15594, for descent, where the growth at k = 0 is
log(1 + D)/2: with momentum 0.9 it is some hundred times that at the same drift). A run that cannot rest bursts and
falls below the edge, again and again, while the central flow stays there.
"""

import numpy as np

from eos_sde.training.linear_rules import LinearRule


def resting_growth(rule: LinearRule, drive: float, pull: float) -> float:
    """Rate at which a small disturbance of the oscillation at the edge grows.

    Parameters
    ----------
    rule : LinearRule
        The step, at a learning rate of 1.
    drive : float
        D, from 0.
    pull : float
        k, the curvature that takes back a change of the critical one.

    Returns
    -------
    float
        Per step; negative where the oscillation comes to rest.
    """
    b, gain = rule.momentum, rule.gain
    edge = float(rule.edge(1.0))
    columns = []
    for a, v, y, u in np.eye(4):
        slope, force = edge * a + y, pull * y + drive * a
        # both signs turn from step to step in the mode, and a is in units of X
        later_v, later_u = -(b * v + gain * slope), b * u + gain * force
        if rule.nesterov:
            later_a, later_y = -a + gain * slope - b * later_v, y - gain * force - b * later_u
        else:
            later_a, later_y = -a - later_v, y - later_u
        columns.append((later_a, later_v, later_y, later_u))
    return float(np.log(np.abs(np.linalg.eigvals(np.array(columns).T)).max()))
