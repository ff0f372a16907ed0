"""The only room of the service that knows torch and must_core's models."""
