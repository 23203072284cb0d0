"""A decoder at four bits beside its peers; see ``benchmarks.four_bits.__main__``."""
