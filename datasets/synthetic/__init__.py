"""Built-in data: drawn pedestrians and vehicles under several cameras."""
