"""Readers of layouts: from the files of a dataset to rows with raw identities and cameras."""
