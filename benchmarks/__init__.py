"""The figures of the README: networks, masks, and one script for each figure."""
