"""`tiprctl` as its tests call it."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tiprctl.cli.app import app


def run(*arguments: object, exit_code: int = 0) -> Result:
    """What a command prints and returns; it must end with `exit_code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result
