"""Pictures of finished runs: curves, patients, masks, views."""
