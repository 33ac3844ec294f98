"""Starts a worker: ``python -m ingot.runtime.isolation --fd N``, or this very file as a script.

As a script it runs under any interpreter: Ingot's own modules are taken from the folder that this
file lies in, and nothing else of the caller's environment is. It tells when the interpreter is too
old, so this file keeps to what Python 2.7 can read.
"""

import json
import os
import struct
import sys

OLDEST = (3, 10)


def _refuse_old_python():
    if "--fd" in sys.argv:
        found = ".".join(str(part) for part in sys.version_info[:3])
        error = {
            "type": "UsageError",
            "message": sys.executable + " is Python " + found + "; expected 3.10 or later",
            "hint": None,
            "exit_code": 2,
        }
        text = json.dumps(error).encode("utf-8")
        frame = struct.pack("<4sBBHII", b"INGW", 1, 6, 0, len(text), 0) + text
        os.write(int(sys.argv[sys.argv.index("--fd") + 1]), frame)
    sys.exit(2)


def _import_ingot():
    """Import the package that this file belongs to, without touching the search path."""
    from importlib.util import module_from_spec, spec_from_file_location

    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    root = os.path.dirname(os.path.dirname(here))
    spec = spec_from_file_location(
        "ingot", os.path.join(root, "__init__.py"), submodule_search_locations=[root]
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["ingot"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    if sys.version_info[:2] < OLDEST:
        _refuse_old_python()
    if not __package__:
        _import_ingot()
    else:  # with -m, modules of whatever folder the caller is in would come first
        sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
    from importlib import import_module

    sys.exit(import_module("ingot.runtime.isolation.worker").main(sys.argv[1:]))
