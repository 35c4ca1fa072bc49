"""The state folder: what must outlive the process."""
