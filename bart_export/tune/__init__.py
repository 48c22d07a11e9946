"""The smallest file inside a budget, and what each layer loses when stored narrower."""
