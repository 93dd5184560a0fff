"""What ``tools.export`` is made of: writing a layout's file, checking it, 8-bit recipes, the verdict, references."""
