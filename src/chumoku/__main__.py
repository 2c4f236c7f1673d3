"""python -m chumoku."""

import sys

from chumoku.cli import main

if __name__ == "__main__":
    sys.exit(main())
