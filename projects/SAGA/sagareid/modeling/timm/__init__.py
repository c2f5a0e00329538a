"""timm's models as image towers: their sizes, weights and blocks."""
