"""Models, data and losses as pure functions: what the operators over data differentiate."""
