"""What every command that serves a page or an interface shares: who may ask, and where it listens."""
