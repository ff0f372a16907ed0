"""What an operator does by hand: verify, back up, restore. Nothing of the running service imports it."""
