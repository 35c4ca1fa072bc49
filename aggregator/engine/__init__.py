"""One engine under every recipe: the exchange decides, the dispatcher performs, the trip asks and checks."""
