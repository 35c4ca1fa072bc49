"""Tables as people bring them: CSV, Parquet and .npz files, read into columns by name.

Nodes read their datasets with it, and `edge-attention data check` says beforehand what a node would make of
a file, so that both know the same.
"""
