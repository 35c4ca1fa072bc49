"""The dashboards as code. `python -m deploy.grafana.build` writes them to deploy/grafana/dashboards/."""
