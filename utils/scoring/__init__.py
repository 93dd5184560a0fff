"""Computes scores from features: distances, matching, ranking, neighbours, search, verification."""
