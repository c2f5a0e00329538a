"""A whole check of a GPU in one command: `check` runs the steps, each in a process of its own."""
