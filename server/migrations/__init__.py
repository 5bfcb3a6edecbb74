"""How the catalogue's tables came to be, one step a file in versions/: Alembic runs them when a server opens it."""
