"""Building of the wheel, which contains one package."""
