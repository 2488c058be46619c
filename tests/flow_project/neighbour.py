"""A module beside the flow."""
