"""What a simulated plate is drawn from: cells, their phenotypes, the screen around them."""
