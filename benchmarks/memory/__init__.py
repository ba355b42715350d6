"""How much memory every quantity takes over what was taken at the start of the call, beside the budget it was given."""
