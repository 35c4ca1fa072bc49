"""How the aggregator serves methods: bytes in and out, errors by the catalogue, requests bounded and fair."""
