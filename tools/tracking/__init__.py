"""From tracklets to identities: what ``tools.identities`` is made of."""
