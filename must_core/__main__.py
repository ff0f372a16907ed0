"""``python -m must_core adapt …``: the training library's command line, no service needed."""

from must_core.cli.main import app

if __name__ == "__main__":
    app()
