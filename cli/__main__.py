"""``python -m ingot.cli`` is ``ingot``."""

from . import main

main()
