"""What a client contributes to a round that asks: its rows as columns, and the vector they give."""
