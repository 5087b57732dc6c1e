"""Where the official files of the data sets are, if anywhere."""

import os
from pathlib import Path

REAL = Path(os.environ.get("GDREGS_DATA", Path(__file__).parents[3] / "shared" / "data"))
