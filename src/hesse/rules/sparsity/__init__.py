"""Which elements of its operands each element of an op's result depends on, one family of ops a file."""
