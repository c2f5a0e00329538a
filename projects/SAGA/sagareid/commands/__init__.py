"""Commands: each module parses arguments and calls the library. ``tools/NAME.py`` and ``sagareid NAME`` run the same
`main`.

They live in the package, so that an installed one has them, and import what they call only after the arguments are
parsed: a help text, or an option that is wrong, must not cost the import of PyTorch.
"""
