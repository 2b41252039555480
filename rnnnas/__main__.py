"""`python -m rnnnas` is the `rnnnas` command."""

from rnnnas.cli import main

if __name__ == "__main__":
    main()
