"""Parts of networks: necks, heads, jigsaw patches, prompts, sparse attention."""
