"""Makes ``bench`` importable: it is a folder of the checkout, not part of the installed distribution."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
