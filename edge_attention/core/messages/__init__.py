"""What is said over the wire: a file a .proto, of the same name, and one for a large part of another."""
