"""From a float update to bounded integers: clipping, rounding, rotation and the ring of the sum."""
