"""From features to scores: distances, matching, ranking, neighbours, search, verification."""
