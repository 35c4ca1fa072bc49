"""Models as other people's tools export them, for tests and the table of docs/models.md; needs PyTorch."""
