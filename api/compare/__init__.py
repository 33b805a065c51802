"""One prompt, the base model beside profiles."""
