"""The recipe of training by fusion."""
