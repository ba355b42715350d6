"""Where replayed and compiled products are faster than those of a kept graph, and from how many products on."""
