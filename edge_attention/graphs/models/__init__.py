"""What users bring: read strictly, checked, losses, parameters."""
