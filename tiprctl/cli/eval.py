def evaluate() -> None:
    """Under construction."""
