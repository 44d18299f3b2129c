"""Alembic's entry: runs the revisions on the connection the store hands over. No configuration file is needed."""

from __future__ import annotations

from alembic import context

from fhir_server.store.tables import METADATA

with_connection = context.config.attributes["connection"]
context.configure(connection=with_connection, target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
