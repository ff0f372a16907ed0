"""Images, from files to batches of views."""
