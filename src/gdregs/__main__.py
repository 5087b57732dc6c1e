"""`python -m gdregs`."""

import sys

from gdregs.cli import main

sys.exit(main())
