"""`python -m gdregs.cli`."""

import sys

from gdregs.cli import main

sys.exit(main())
