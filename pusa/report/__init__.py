"""From scores to tables, claims, costs, provenance and pages."""
