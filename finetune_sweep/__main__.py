"""`python -m finetune_sweep`."""

from finetune_sweep.cli import main

main()
