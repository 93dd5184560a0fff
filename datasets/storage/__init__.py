"""Where bytes come from: files, tar shards, decoding, caches in memory and of parsed lists."""
