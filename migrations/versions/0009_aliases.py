"""Aliases: names that answer with a classifier."""

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "aliases",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("classifier_id", sa.String(length=40), nullable=False),
        sa.Column("num_moves", sa.Integer(), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["classifier_id"], ["classifiers.id"], name=op.f("fk_aliases_classifier_id")),
        sa.PrimaryKeyConstraint("tenant", "name", name=op.f("pk_aliases")),
    )
    op.create_index(op.f("ix_aliases_classifier_id"), "aliases", ["classifier_id"], unique=False)
    op.create_table(
        "alias_moves",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("classifier_id", sa.String(length=40), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant", "name"],
            ["aliases.tenant", "aliases.name"],
            name=op.f("fk_alias_moves_tenant"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "name", "number", name=op.f("pk_alias_moves")),
    )


def downgrade() -> None:
    """Undo this revision. The classifiers stay, their names are lost."""
    op.drop_table("alias_moves")
    op.drop_table("aliases")
