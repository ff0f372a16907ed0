"""Class names and prompts, from files to class weights."""
