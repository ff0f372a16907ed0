"""A classifier knows which images are of none of its classes."""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Apply this revision. Classifiers that there are go on taking every image for one of their classes."""
    op.add_column("classifiers", sa.Column("unknown_below", sa.Double(), nullable=True))


def downgrade() -> None:
    """Undo this revision. The limits are lost, save those in bundles."""
    op.drop_column("classifiers", "unknown_below")
