"""The service of tools.serve: what it can do, how requests become batches, and its interface over HTTP."""
