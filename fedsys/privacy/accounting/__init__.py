"""From events to epsilon: an accountant for the three views, and the conversions behind it."""
