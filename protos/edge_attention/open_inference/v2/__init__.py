"""Version 2: the .proto file, and the Python code that is generated from it beside it."""
