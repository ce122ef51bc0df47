"""`python -m copycat` is `copycat`."""

from __future__ import annotations

from copycat.cli import main

if __name__ == "__main__":
    main()
