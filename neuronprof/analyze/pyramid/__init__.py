"""Levels of detail of one rank: what a picture needs of its events at any zoom, summed once and kept."""
