"""What clients call that is no recipe: a few lines a method."""
