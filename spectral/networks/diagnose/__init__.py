"""What is tested of a model before it is multiplied, and which module is to blame where something fails."""
