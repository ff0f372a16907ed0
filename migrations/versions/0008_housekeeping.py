"""Garbage collection: blobs are looked up by name, chores are shared out, backups hold blobs."""

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "chores",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reached", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_chores")),
    )
    op.create_table(
        "blob_holds",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blob_holds")),
    )
    op.create_index("ix_dataset_images_sha256", "dataset_images", ["sha256"])


def downgrade() -> None:
    """Undo this revision."""
    op.drop_index("ix_dataset_images_sha256", table_name="dataset_images")
    op.drop_table("blob_holds")
    op.drop_table("chores")
