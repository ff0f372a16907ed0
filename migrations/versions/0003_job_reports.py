"""What a job changed, to be looked at, in a table of its own."""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Apply this revision. Jobs that there are have no report."""
    op.create_table(
        "job_reports",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("body", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_reports_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_reports")),
    )


def downgrade() -> None:
    """Undo this revision. The reports are lost."""
    op.drop_table("job_reports")
