"""Exported files in real trackers: the toolbox's side (``__main__``) and the trackers' side (``outside``)."""
