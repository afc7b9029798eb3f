"""``python -m fluxvit`` is the ``fluxvit`` command."""

import sys

from fluxvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
