"""Jobs are looked up by the classifier that they answer with: whoever deletes one need not look at each job."""

from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_index(op.f("ix_jobs_classifier_id"), "jobs", ["classifier_id"], unique=False)


def downgrade() -> None:
    """Undo this revision."""
    op.drop_index(op.f("ix_jobs_classifier_id"), table_name="jobs")
