"""Labelling of images in a browser: decisions, what follows from them, and the page (``tools.label``)."""
