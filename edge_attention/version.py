"""The version of this project, as pyproject.toml has it. To look it up in what is installed takes 1 MB."""

VERSION = "0.1.0"
