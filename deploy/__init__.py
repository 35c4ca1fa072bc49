"""What an operator runs. A package so that `python -m deploy.grafana.build` works; no part of the wheel."""
