"""Dashboards and alert rules, described once in Python and written for Grafana and Prometheus."""
