"""For the folders below: pytest finds the helpers beside this file."""
