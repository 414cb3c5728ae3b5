"""Upper floor: the FAISS index, releases and the Ray Serve application."""
