"""Text-to-image person retrieval: describe a person in a sentence, get the matching crops of a gallery ranked."""

__version__ = "0.1.0"
