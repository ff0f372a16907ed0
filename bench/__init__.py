"""Every figure that a document quotes, each printed by one command."""
