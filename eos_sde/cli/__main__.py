"""Runs the command line as `python -m eos_sde.cli`."""

import sys

from eos_sde.cli import main

sys.exit(main())
