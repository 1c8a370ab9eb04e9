"""Everything that talks to a Hub, and the cache of what came from it."""
