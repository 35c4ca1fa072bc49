"""The service in the middle: recipes over one engine, and what they rest on."""
