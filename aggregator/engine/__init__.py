"""One engine under every recipe: the exchange decides, the dispatcher performs."""
