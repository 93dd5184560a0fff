"""What ``tools.hub`` publishes: weights, settings, a description and a model card."""
