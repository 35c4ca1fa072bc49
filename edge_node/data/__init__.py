"""The box's own data: tables, and datasets of them."""
