"""A plan in words and tables."""

import json

import xarray as xr
from rich.table import Table

_GB = 1e9


def plan_as_table(plan: xr.Dataset) -> Table:
    """Memory and collectives of the compiled programs.

    Parameters
    ----------
    plan : Dataset
        From `plan_training`.

    Returns
    -------
    Table
        A column for each program.
    """
    names = [str(name) for name in plan["program"].values]
    table = Table("on each device", *(f"{name} step" for name in names))
    rows = {
        "weights and state, GB": plan["argument_bytes"].values / _GB,
        "temporary, GB": plan["temporary_bytes"].values / _GB,
        "peak, GB": plan["peak_bytes"].values / _GB,
    }
    for when in plan["when"].values:
        for kind in plan["collective"].values:
            at = {"when": when, "collective": kind}
            if float(plan["collectives"].sel(at).sum()):
                rows[f"{kind} in {'an' if when == 'update' else 'a'} {when}, GB"] = (
                    plan["collective_bytes"].sel(at).values / _GB
                )
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.3g}" for value in values))
    return table


def plan_in_words(plan: xr.Dataset) -> str:
    """What the run would take, in sentences.

    Parameters
    ----------
    plan : Dataset
        From `plan_training`.

    Returns
    -------
    str
        Lines.
    """
    value = {str(name): float(plan[name]) for name in plan.data_vars if not plan[name].ndim}
    fits = "fits" if value["fits"] else "does not fit"
    lines = [
        f"{plan.attrs['description']}: {value['weights']:,.0f} weights; {plan.attrs['mesh']}, batch "
        f"{plan.attrs['batch']}, {plan.attrs['precision']}",
        f"it {fits} in {value['memory'] / _GB:g} GB",
        f"an example takes {value['gradient_flops']:.3g} operations for a gradient, with what is recomputed",
    ]
    if plan.attrs["rule"] == "caeo":
        lines.append(
            f"a measurement of the curvature takes {value['measurement_gradients']:.3g} gradients of the batch; by the "
            f"default budget {100 * value['overhead']:.2g} % in the long run"
        )
    lines.append(
        f"at {100 * value['utilization']:g} % of {value['peak']:.3g} operations per second and device: "
        f"{value['updates_per_day']:,.0f} updates a day, {value['days']:.3g} days for {value['epochs']:g} epochs of "
        f"{value['examples']:,.0f} examples ({plan.attrs['data']})"
    )
    return "\n".join(lines)


def plan_as_json(plan: xr.Dataset) -> str:
    """A plan for machines.

    Parameters
    ----------
    plan : Dataset
        From `plan_training`.

    Returns
    -------
    str
        JSON: the attributes, the scalars, and by program memory and collectives.
    """
    scalars = {str(name): plan[name].item() for name in plan.data_vars if not plan[name].ndim}
    programs = {}
    for name in plan["program"].values:
        of_one = plan.sel(program=name)
        programs[str(name)] = {
            key: of_one[key].item() for key in map(str, plan.data_vars) if plan[key].dims == ("program",)
        } | {
            key: {
                f"{kind} ({when})": of_one[key].sel(collective=kind, when=when).item()
                for kind in plan["collective"].values
                for when in plan["when"].values
                if of_one["collectives"].sel(collective=kind, when=when)
            }
            for key in ("collectives", "collective_bytes", "largest_collective")
        }
    return json.dumps(dict(plan.attrs) | scalars | {"programs": programs}, default=str)
