"""The training library's command line; `must_core.cli.main` has the commands."""
