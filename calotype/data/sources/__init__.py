"""Sources of pictures: folders, archives, tables, arrays, hubs, built-in letters; and their label files."""
