"""What is said over the wire: a file a .proto, of the same name, and a file for a part of one that is large."""
