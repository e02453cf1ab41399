"""`python -m refattn`: the same as the `refattn` command."""

import sys

from refattn.cli import main

if __name__ == "__main__":
    sys.exit(main())
