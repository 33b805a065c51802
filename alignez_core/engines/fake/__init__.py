"""An engine without a model, for tests of what is above engines."""
