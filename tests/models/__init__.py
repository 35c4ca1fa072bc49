"""Every model of a folder, by every plan: the table of docs/models.md."""
