"""One file per method: its stages."""
