"""``python -m pusa``: the command line."""

from pusa.cli import main

if __name__ == "__main__":
    main()
