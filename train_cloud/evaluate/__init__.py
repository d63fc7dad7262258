"""Tries a model on episodes of its own: results, videos, routes. Knows no store; ``worker`` hands it a folder."""
