"""What brings a gallery up to date: images found, read, embedded, described, written."""
