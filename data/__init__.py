"""Ground floor: events, histories, prepared datasets, batches; settings and errors."""
