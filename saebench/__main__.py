"""`python -m saebench` is the `saebench` command."""

from saebench.cli.main import main

main()
