"""Estimators of the largest algebraic eigenvalue of the loss Hessian, behind one interface.

| estimator | finds | error bound | cost (products) | use it |
|---|---|---|---|---|
| `lanczos` | largest eigenvalue, from below | residual | order, a few times that when cold | always |
| `power` | the same, more slowly | residual | iterations + shift_order | little memory |
| `random_rayleigh` | about trace/d | residual (not of what is missed) | samples | to compare |
| `hutchinson` | an upper bound by trace and Frobenius norm | width of its interval | samples | as a bound |
| `kfac` | the largest of KFAC's blocks, on no side | residual | 1 + samples / 3 | to compare; needs the layers |

The products are the Hessian's, or with `gauss_newton` the Gauss-Newton matrix's; with `recomputed` they keep nothing
between them.
"""

from eos_sde.optimizers.curvature.gauss_newton import (
    GaussNewton,
    gauss_newton,
    gauss_newton_product,
)
from eos_sde.optimizers.curvature.interface import PRODUCT_COST, Estimator, hessian_product
from eos_sde.optimizers.curvature.kronecker import kfac
from eos_sde.optimizers.curvature.krylov import lanczos, power
from eos_sde.optimizers.curvature.recomputed import Recomputed, recomputed
from eos_sde.optimizers.curvature.sampling import hutchinson, hutchinson_trace, random_rayleigh

ESTIMATORS = {
    "lanczos": lanczos,
    "power": power,
    "random_rayleigh": random_rayleigh,
    "hutchinson": hutchinson,
}
"""Every estimator that needs the products alone, by name: a new one is a file of this package and a line here."""

__all__ = [
    "ESTIMATORS",
    "PRODUCT_COST",
    "Estimator",
    "GaussNewton",
    "Recomputed",
    "gauss_newton",
    "gauss_newton_product",
    "hessian_product",
    "hutchinson",
    "hutchinson_trace",
    "kfac",
    "lanczos",
    "power",
    "random_rayleigh",
    "recomputed",
]
