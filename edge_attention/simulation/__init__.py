"""A job's nodes simulated on one machine: how rows are shared out, and how nodes misbehave."""
