"""`python -m stratascope` is the command line."""

from stratascope.cli import main

main(prog_name="stratascope")
