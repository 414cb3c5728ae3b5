"""Which items were added and removed since a release was built, kept beside an endpoint."""
