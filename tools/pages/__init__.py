"""Templates, charts and pictures of the pages that commands write."""
