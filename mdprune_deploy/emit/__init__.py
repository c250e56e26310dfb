"""The targets: what a domain's finished graph becomes on disk."""
