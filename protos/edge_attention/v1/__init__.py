"""Version 1: the .proto files, and the Python code that is generated from them beside each."""
