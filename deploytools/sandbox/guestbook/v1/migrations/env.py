"""How Alembic reaches the database: each migration is applied whole or not at all."""

from __future__ import annotations

from logging.config import fileConfig
from typing import Any

from alembic import context
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool


def main() -> None:
    """Run what Alembic was asked for."""
    settings = context.config
    if settings.config_file_name is not None:
        fileConfig(settings.config_file_name, disable_existing_loggers=False)
    url = settings.get_main_option("sqlalchemy.url")
    if url is None:
        raise SystemExit("alembic.ini: sqlalchemy.url is missing")
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": 30})
    make_ddl_transactional(engine)
    with engine.connect() as connection:
        context.configure(connection=connection, transactional_ddl=True, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()


def make_ddl_transactional(engine: Engine) -> None:
    """Send BEGIN ourselves: Python's sqlite3 does so before INSERT and UPDATE only, never before DDL.

    This is the recipe of SQLAlchemy's documentation of its SQLite dialect. Write-ahead logging lets the
    application go on reading, and it can't be switched on inside a transaction.
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


if context.is_offline_mode():
    raise SystemExit("these migrations move data; they can't be written out as SQL")
main()
