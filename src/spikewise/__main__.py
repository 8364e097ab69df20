"""``python -m spikewise`` and the command ``spikewise``: Ctrl-C ends it quietly, also while it is loaded."""

import gc
import sys


def main() -> int:
    """Run the command and return its exit code."""
    try:
        gc.disable()  # what is loaded stays: to look through it again and again takes a tenth of the time
        from spikewise.cli.main import main as run

        gc.freeze()
        gc.enable()
        return run()
    except KeyboardInterrupt:  # before the command could take care of it
        print("error: Interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
