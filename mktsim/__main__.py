"""``python -m mktsim``: see :mod:`mktsim.cli`."""

from mktsim.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
