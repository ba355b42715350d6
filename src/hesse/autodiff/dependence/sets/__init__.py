"""Sets of inputs, one for each element of a tensor, in the representation that is cheapest for as many as there are."""
