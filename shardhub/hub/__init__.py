"""The Hub client: reading, publishing and deleting repos, and the cache of what was fetched."""
