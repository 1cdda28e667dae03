"""Which parts of a method help: every subset of them trained from one shared start, and compared in pairs."""
