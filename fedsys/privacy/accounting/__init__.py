"""From events to epsilon: one accountant for the three views, and the conversions behind it."""
