def prepare() -> None:
    """Under construction."""
