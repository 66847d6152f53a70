"""A picture's gradient, and the training pictures whose rows score highest with it.

- `index` is the public `Index`: a `query` (its `pictures` and options), `query_gradients`, and the
  `ranker`, which gives `results`.
- `scoring` computes exact scores from the store's rows; `whitening` transforms queries, by
  Cholesky `factors` that are kept in the store.
- `ann_index` is a FAISS index that proposes candidates, `ann_builder` makes and measures it, and
  `workers` search it on a Ray cluster.
- `training_pictures` are the pictures behind the rows, where they still are.
"""
