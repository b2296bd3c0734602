"""The folder of these tests is on the path: they share how processes are started, and import what these run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
