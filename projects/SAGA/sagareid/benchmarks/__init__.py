"""How long our ways take beside the plain ones."""
