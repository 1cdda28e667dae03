"""What a gallery is asked: exact search, the vector index, filters, what is looked for."""
