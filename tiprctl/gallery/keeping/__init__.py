"""A gallery on disk: its engine, its columns, its store, its upkeep."""
