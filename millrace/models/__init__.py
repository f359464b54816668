"""The networks: small modules whose tensor names carry their shapes."""
