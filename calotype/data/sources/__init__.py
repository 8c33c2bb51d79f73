"""Where pictures come from: folders, archives, tables, arrays, hubs, built-in letters; and what lies beside them."""
