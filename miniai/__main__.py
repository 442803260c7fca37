"""`python -m miniai` is the `miniai` command."""

from miniai.cli import main

if __name__ == "__main__":
    main()
