"""``python -m gradwire`` is the command ``gradwire``."""

from gradwire.cli import main

main()
