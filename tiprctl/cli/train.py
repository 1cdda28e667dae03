def train() -> None:
    """Under construction."""
