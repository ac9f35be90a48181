"""`python -m lorif_hf`: the command line."""

from .commands import main


main()
