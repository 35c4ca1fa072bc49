"""The package the messages belong to, by version."""
