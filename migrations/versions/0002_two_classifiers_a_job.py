"""A job publishes its adapted classifier and, unless that one is promoted, a zero-shot one to answer with."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Apply this revision. Jobs that there are answer with what they published."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("promotion", sa.String(length=8), nullable=False, server_default="auto"))
        jobs.add_column(sa.Column("classifier_id", sa.String(length=40), nullable=True))
        jobs.create_check_constraint(op.f("ck_jobs_promotion"), "promotion in ('auto','manual','never')")
        jobs.create_foreign_key(op.f("fk_jobs_classifier_id"), "classifiers", ["classifier_id"], ["id"])
    with op.batch_alter_table("classifiers") as classifiers:
        classifiers.drop_constraint(op.f("uq_classifiers_job_id"), type_="unique")
        classifiers.create_unique_constraint(op.f("uq_classifiers_job_id"), ["job_id", "kind"])
    op.execute("UPDATE jobs SET classifier_id = (SELECT id FROM classifiers WHERE job_id = jobs.id)")


def downgrade() -> None:
    """Undo this revision. Classifiers that their jobs do not answer with stay, and say no more where they are from."""
    op.execute(
        "UPDATE classifiers SET job_id = NULL WHERE job_id IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM jobs WHERE jobs.classifier_id = classifiers.id)"
    )
    with op.batch_alter_table("classifiers") as classifiers:
        classifiers.drop_constraint(op.f("uq_classifiers_job_id"), type_="unique")
        classifiers.create_unique_constraint(op.f("uq_classifiers_job_id"), ["job_id"])
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("fk_jobs_classifier_id"), type_="foreignkey")
        jobs.drop_constraint(op.f("ck_jobs_promotion"), type_="check")
        jobs.drop_column("classifier_id")
        jobs.drop_column("promotion")
