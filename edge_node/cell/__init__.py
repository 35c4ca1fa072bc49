"""The process in which graphs of others run, and the daemon at its other end."""
