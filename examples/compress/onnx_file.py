"""Print the path of the ONNX file in a verdict: ``python3 onnx_file.py run/verdict.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

verdict = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
print(next(item["path"] for item in verdict["artifacts"] if item["format"] == "onnx"))
