"""From a decoded image to the tensor that a network takes."""
