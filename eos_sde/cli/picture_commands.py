"""Commands that show results: plot, report."""

import typer

app = typer.Typer()
