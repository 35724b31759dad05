"""How products are computed: linearised, recorded as programs, chosen by the products that are made. Skip on first reading."""
