"""Comparing heads, and what is found of people who are hidden more and more."""
