"""What is said over the wire, one file a .proto, of the same name."""
