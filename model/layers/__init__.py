"""Layers: necks, classifiers, jigsaw patches, pooling, prompts, sparse attention."""
