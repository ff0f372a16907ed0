"""Creating requests that happen once however often they are sent."""
