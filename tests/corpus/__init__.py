"""Every CSV file that packages of data ship, read as a node would read it: `make test-corpus`."""
