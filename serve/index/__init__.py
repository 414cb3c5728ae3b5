"""Item vectors arranged for top-k search. The only place that imports faiss."""
