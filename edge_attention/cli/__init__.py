"""`edge-attention`: the command line of clients, one module a command."""
