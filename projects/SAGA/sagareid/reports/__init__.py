"""Pages and pictures of runs, studies and searches."""
