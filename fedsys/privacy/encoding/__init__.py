"""From float updates to bounded integers: clipping, rounding, rotation and the sum's ring."""
