"""From an operator to its spectrum, its extreme eigenpairs, and numbers of it with their errors."""
