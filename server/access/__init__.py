"""Who may do what: keys, the scope each route needs, what a key bound to a tenant sees, and how much it may ask."""
