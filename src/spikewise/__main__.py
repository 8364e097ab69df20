"""``python -m spikewise`` is the command ``spikewise``."""

import sys

from spikewise.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
