def query() -> None:
    """Under construction."""
