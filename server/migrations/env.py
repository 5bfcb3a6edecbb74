"""What Alembic runs to migrate: the steps, on the connection and in the transaction that `server.database` gives it."""

from alembic import context

from server.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
