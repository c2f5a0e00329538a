"""Data sets, one file a family; importing registers them with FastReID."""
