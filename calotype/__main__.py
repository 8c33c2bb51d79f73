"""`python -m calotype`: the command where only a module can be named, as by torchrun."""

import sys

from calotype.cli import main

sys.exit(main())
