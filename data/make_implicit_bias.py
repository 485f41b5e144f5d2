"""Make implicit_bias.csv: where each rule ends, forecast and run, on two networks; 80 minutes of one core.

The folder keeps finished cells, so that an interrupted run goes on; a new one (``--store``) computes all of them again.
"""

import argparse
from pathlib import Path

import pandas as pd
import xarray as xr

from eos_sde import bridge, implicit_bias_report

RUNS = {"digits-mlp": (0, 1), "fashion-mlp": (3,)}
LEFT_OUT = ("forecast_seconds", "measured_seconds", "caution")


def _rows(table: xr.Dataset) -> pd.DataFrame:
    """One row for each cell that was forecast and run; numbers with six digits."""
    frame = table.drop_vars(LEFT_OUT).to_dataframe().reset_index()
    frame = frame[frame["status"] != "left out"]
    frame.insert(0, "task", table.attrs["task"])
    return frame.sort_values(["seed", "rule", "batch"], kind="stable")


def main() -> None:
    """Compute what is not in the store, write the file beside this one, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("implicit-bias.cells"), help="folder of the cells")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("implicit_bias.csv"))
    chosen = parser.parse_args()
    tables = [
        bridge.implicit_bias_table(task, seeds=seeds, store=chosen.store) for task, seeds in RUNS.items()
    ]
    made = tables[0].attrs
    lengths = ", ".join(f"{key} {made[key]}" for key in ("steps", "replicas", "warmup", "window", "probes"))
    header = [
        "Where each rule ends, forecast by the central flows and run; columns as in bridge.implicit_bias_table.",
        f"Made by data/make_implicit_bias.py with {made['creator']}; {made['versions']}; {lengths}.",
        *(f"{t.attrs['task']}: {t.attrs['description']}; {t.attrs['data_licence']}." for t in tables),
    ]
    rows = pd.concat([_rows(table) for table in tables])
    text = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    chosen.out.write_text("".join(f"# {line}\n" for line in header) + text)
    for table in tables:
        implicit_bias_report.show(table)


if __name__ == "__main__":
    main()
