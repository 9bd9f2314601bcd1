"""Alembic's entry: migrates the connection that the store hands over, inside its transaction."""

from alembic import context

from broker.adapters.sql.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
context.run_migrations()
