"""What the metrics of both daemons are made of."""
