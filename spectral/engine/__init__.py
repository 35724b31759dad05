"""How products are computed: linearised, recorded as programs, chosen by measuring. Skip on first reading."""
