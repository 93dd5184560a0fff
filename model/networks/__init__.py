"""One file per network: a backbone with what a method puts on it."""
