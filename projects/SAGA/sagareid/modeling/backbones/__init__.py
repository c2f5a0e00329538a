"""Backbones that hand tokens or maps to a head."""
