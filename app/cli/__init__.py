"""The ``must`` command."""
