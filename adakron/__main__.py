"""`python -m adakron`: the verbs that need no server."""

import sys

from adakron.cli import main

if __name__ == "__main__":
    sys.exit(main())
