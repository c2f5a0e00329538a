"""How long our ways take beside the plain ones, and a whole check of a GPU."""
