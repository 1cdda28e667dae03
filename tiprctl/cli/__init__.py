"""The command line: one thin file per command, `app` which joins them, `render` which alone prints."""

from tiprctl.cli.app import main

__all__ = ["main"]
