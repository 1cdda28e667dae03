"""Subsets of a method's parts, or whole methods, trained from shared starts and compared in pairs."""
