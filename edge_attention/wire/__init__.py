"""Our dataclasses to protobuf and back; the only code that touches generated messages."""
