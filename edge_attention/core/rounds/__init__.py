"""State machines of rounds, and what they rest on."""
