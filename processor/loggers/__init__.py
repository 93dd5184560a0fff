"""Where the scalars of training go: TensorBoard, Weights & Biases, MLflow, a CSV file."""
