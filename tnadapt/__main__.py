"""Run the command `tnadapt` as `python -m tnadapt`."""

import sys

from tnadapt._command import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
