"""How an image in a ranked list is judged."""

RIGHT, WRONG, JUNK = 1, 0, -1
"""Of the query's identity, of another identity, or left out of the scores."""
