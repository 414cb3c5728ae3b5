"""What users did, kept beside an endpoint, so that a request may name a user in place of a history."""
