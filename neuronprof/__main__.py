"""python -m neuronprof."""

import sys

from neuronprof.cli import main

if __name__ == "__main__":
    sys.exit(main())
