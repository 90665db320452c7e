"""What can be searched: operations, cells, supernets, genotypes. Import the modules; nothing is loaded here."""
