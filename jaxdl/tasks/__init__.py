"""What a model is for: inputs, losses, metrics, augmentation, generation."""
