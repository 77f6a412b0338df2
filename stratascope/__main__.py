"""`python -m stratascope` is the command line."""

from stratascope.cli import main

main()
