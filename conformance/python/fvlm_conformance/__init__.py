"""Programs that compare FastVLM's graphs and answers with those of others; see conformance/README.md."""
