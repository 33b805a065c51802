"""What is not part of the product: how persona-nano was trained and how its effect is measured."""
