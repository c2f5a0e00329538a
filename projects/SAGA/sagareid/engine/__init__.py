"""Training stages on FastReID's trainer."""
