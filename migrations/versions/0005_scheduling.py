"""Whose turn it is: tenants, priorities, limits of time, GPUs; and which workers there are."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Apply this revision. Jobs that there are belong to the default tenant and have no limits."""
    op.drop_index("ix_jobs_claim", table_name="jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("tenant", sa.String(length=64), nullable=False, server_default="default"))
        jobs.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
        jobs.add_column(sa.Column("max_runtime_s", sa.Integer(), nullable=True))
        jobs.add_column(sa.Column("max_pending_s", sa.Integer(), nullable=True))
        jobs.add_column(sa.Column("num_gpus", sa.Integer(), nullable=False, server_default="1"))
        jobs.add_column(sa.Column("pending_until", sa.DateTime(timezone=True), nullable=True))
        jobs.add_column(sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))
        jobs.add_column(sa.Column("running_s", sa.Double(), nullable=False, server_default="0"))
    op.create_index("ix_jobs_tenant_claimed_at", "jobs", ["tenant", "claimed_at"])
    queued = ["tenant", "priority", "created_at", "id", "available_at", "num_gpus"]
    _create_index_of_some("ix_jobs_claim", queued, "status = 'queued'")
    _create_index_of_some("ix_jobs_held", ["tenant", "lease_until"], "lease_until IS NOT NULL")
    _create_index_of_some("ix_jobs_finished_at", ["finished_at"], "finished_at IS NOT NULL")
    _create_index_of_some("ix_jobs_pending_until", ["pending_until"], "pending_until IS NOT NULL")
    op.create_table(
        "workers",
        sa.Column("owner", sa.String(length=120), nullable=False),
        sa.Column("num_slots", sa.Integer(), nullable=False),
        sa.Column("num_gpus", sa.Integer(), nullable=False),
        sa.Column("expected_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    """Undo this revision. Queued jobs wait for their time still; limits and priorities are lost."""
    op.drop_table("workers")
    for name in (
        "ix_jobs_pending_until",
        "ix_jobs_finished_at",
        "ix_jobs_held",
        "ix_jobs_claim",
        "ix_jobs_tenant_claimed_at",
    ):
        op.drop_index(name, table_name="jobs")
    with op.batch_alter_table("jobs") as jobs:
        for column in (
            "running_s",
            "claimed_at",
            "pending_until",
            "num_gpus",
            "max_pending_s",
            "max_runtime_s",
            "not_before",
            "priority",
            "tenant",
        ):
            jobs.drop_column(column)
    op.create_index("ix_jobs_claim", "jobs", ["status", "lease_until", "created_at"])


def _create_index_of_some(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "jobs", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
