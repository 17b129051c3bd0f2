"""`python -m edgecal`: the command line, where the script `edgecal` is not on the path."""

from edgecal.cli import main

main()
