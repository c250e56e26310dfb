"""From one graph for all domains to one narrowed graph per domain."""
