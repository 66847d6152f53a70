"""Whether the files that are made of rows are there, by their sizes: none of them is read."""

from gradindex.search.ann_record import AnnRecord
from gradindex.search.factors import factors_file, factors_fit, saved_factors
from gradindex.store.store import Store


def has_search_files(store: Store, record: AnnRecord) -> bool:
    """Whether all files of a search index are there, each of the size that its record says."""
    sizes = {part.file: part.bytes for part in record.files}
    return store.location.sizes(list(sizes)) == sizes


def has_factor_files(store: Store, method: str) -> bool:
    """Whether all whitening factors of a method are there, of all rows, [D, D] float32 each.

    Also where there is no record of any: nobody has asked for them.
    """
    factors = saved_factors(store, method)
    if factors is None:
        return not store.location.sizes([factors_file(method)])
    if not factors_fit(store, method, factors):
        return False
    block_bytes = 4 * store.shape[3] ** 2
    sizes = {block.file: block_bytes for block in factors.blocks}
    return store.location.sizes(list(sizes)) == sizes
