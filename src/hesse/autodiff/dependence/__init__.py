"""Which elements of the inputs every element of memory depends on, while a function runs."""
