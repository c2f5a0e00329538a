"""Exact faster forms of what the files above say plainly."""
