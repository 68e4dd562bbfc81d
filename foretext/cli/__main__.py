"""`python -m foretext.cli`, and `torchrun -m foretext.cli`."""

from foretext.cli import main

main()
