"""`shardhub plan` and `shardhub split`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
