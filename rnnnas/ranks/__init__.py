"""The processes that share a run: how they find each other, and notice one that has gone."""
