"""What nodes do with gradients: local steps, updates."""
