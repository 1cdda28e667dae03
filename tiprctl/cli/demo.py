def demo() -> None:
    """Under construction."""
