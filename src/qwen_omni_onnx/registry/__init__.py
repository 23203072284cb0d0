"""OCI registries as places for releases: what publishers and receivers share. Needs the extra ``oci``."""
