"""Galleries: crops of people that are kept searchable.

- `keeping`: the rows on disk: Lance, the columns, the store, its upkeep. Knows none of the others.
- `filling`: images found, read, embedded, described and written.
- `searching`: the best rows for a query, exactly or through a vector index.
- `cluster`: filling by several machines.
- `folder`: the gallery of a folder that is only queried; `status`: what a gallery holds; `sheet`: what was found, as a
  picture; `cache`: where tiprctl keeps what it can compute again.
"""
