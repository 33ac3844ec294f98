"""``python -m ingot.compat.ludwig``: Ludwig's export to Neuropod, with the options that it had."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import IngotError
from ..packagers import create_ludwig_package


def main(arguments: Sequence[str] | None = None) -> int:
    """Package a Ludwig model folder; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ingot.compat.ludwig", description="Package a Ludwig model."
    )
    parser.add_argument("--ludwig_model_path", required=True, help="the model folder")
    parser.add_argument("--neuropod_path", required=True, help="the package to write")
    parser.add_argument("--model_name", help="the model's name (default: the folder's)")
    parser.add_argument("--package_as_dir", action="store_true", help="write a directory")
    options = parser.parse_args(arguments)
    try:
        path = create_ludwig_package(
            options.neuropod_path,
            options.model_name,
            ludwig_model_path=options.ludwig_model_path,
            package_as_zip=not options.package_as_dir,
        )
    except IngotError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"error: {error.message}{hint}", file=sys.stderr)
        return error.exit_code
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
